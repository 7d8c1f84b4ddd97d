"""Initial noise: one generator a slice, correlated from slice to slice on demand, and fresh noise mixed in under a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_diffaug.sampling.seeding import slice_generators

__all__ = ["LOCAL_NOISE", "local_noise", "slice_noise"]

LOCAL_NOISE = 2  # the ``purpose`` of the noise that ``local_noise`` mixes in, see ``slice_generators``


def slice_noise(seed: int, slice_indices: Sequence[int], shape: tuple[int, ...], rho: float = 0.0, purpose: int = 0) -> Tensor:
    """Standard normal noise for some slices of a volume.

    n_k = rho n_{k-1} + sqrt(1 - rho^2) e_k over consecutive slice indices: unit variance for every rho, correlation
    rho^|i-j| between slices, and rho = 0 is independent noise. A gap in the indices starts afresh.

    Args:
        seed: the sample's seed.
        slice_indices: increasing positions of the slices.
        shape: shape of one slice's noise, e.g. (4, 32, 32).
        rho: correlation of neighbouring slices, in [0, 1].
        purpose: separates independent streams (see ``slice_generators``).

    Returns:
        (len(slice_indices), *shape) float32 on the CPU.

    Raises:
        ValueError: rho outside [0, 1].
    """
    if not 0.0 <= rho <= 1.0:
        raise ValueError(f"noise_rho must be in [0, 1], got {rho}")
    exactly: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever defaults the user has set
    fresh = [torch.randn(shape, generator=generator, **exactly) for generator in slice_generators(seed, slice_indices, purpose)]
    noise: list[Tensor] = []
    for k, (index, own) in enumerate(zip(slice_indices, fresh, strict=True)):
        follows = k > 0 and slice_indices[k - 1] == index - 1
        noise.append(rho * noise[-1] + math.sqrt(1 - rho * rho) * own if follows else own)
    return torch.stack(noise)


def local_noise(eps: Tensor, eta: Tensor, *, scale_g: float, mask: Tensor) -> Tensor:
    """Noise whose distance from ``eps`` under the mask is set by one number: sqrt(1 - g^2) eps + g eta there, eps outside.

    Variance preserving: when eps and eta are standard normal and independent, so is the result for every g. With random
    eps, g moves a sample away from its g = 0 twin and leaves the similarity to the original as it is; with eps from
    ``invert_latents``, g is the distance to the original (the local-noise strength of MILA-TMGDiff, Cao et al. 2026).

    Args:
        eps: (B, C, h, w) the noise at g = 0.
        eta: (B, C, h, w) independent standard normal noise.
        scale_g: g in [0, 1]; 0 returns eps, 1 puts eta under the mask.
        mask: broadcastable to eps, non-zero means mix.

    Raises:
        ValueError: g outside [0, 1].
    """
    if not 0.0 <= scale_g <= 1.0:
        raise ValueError(f"noise_scale must be in [0, 1], got {scale_g}")
    return torch.where(mask != 0, math.sqrt(1 - scale_g * scale_g) * eps + scale_g * eta, eps)
