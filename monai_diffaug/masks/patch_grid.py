"""Random grid of patches for EMIT-Diff's patch merging: R = up_nearest(Bernoulli(alpha), patch) (Zhang et al., TMI 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ALPHA", "PATCH_FRACTION", "bernoulli", "check_merge", "grid_shape", "upsampled"]

ALPHA = 0.6  # share of patches from the real image (Zhang et al., TMI 2024)
PATCH_FRACTION = 64 / 384  # patches of 64 pixels in images of 384 pixels (same paper)


def grid_shape(spatial: Sequence[int], patch_fraction: float) -> tuple[int, ...]:
    """Number of patches along each axis, for patches of ``patch_fraction`` of the axis; at least 1, at most one per pixel.

    >>> grid_shape((384, 384), 64 / 384)
    (6, 6)
    """
    return tuple(min(length, max(1, round(1 / patch_fraction))) for length in spatial)


def upsampled(cells: Tensor, spatial: Sequence[int]) -> Tensor:
    """(B, h, w[, d]) bool cells -> (B, 1, H, W[, D]) bool, each cell repeated over its patch.

    >>> upsampled(torch.tensor([[[True, False]]]), (1, 4)).tolist()
    [[[[True, True, False, False]]]]
    """
    grown: Tensor = F.interpolate(cells[:, None].float(), tuple(spatial), mode="nearest")
    return grown > 0.5


def check_merge(alpha: float, patch_fraction: float) -> None:
    """Raise ValueError unless alpha is in [0, 1] and patch_fraction in (0, 1].

    >>> check_merge(0.6, 64 / 384)
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if not 0.0 < patch_fraction <= 1.0:
        raise ValueError(f"patch_fraction must be in (0, 1], got {patch_fraction}")


def bernoulli(shape: Sequence[int], alpha: float, generator: torch.Generator | None = None) -> Tensor:
    """Bool tensor on the CPU, True with probability alpha.

    >>> bernoulli((2, 2), 1.0).all().item()
    True
    """
    return torch.rand(tuple(shape), generator=generator) < alpha
