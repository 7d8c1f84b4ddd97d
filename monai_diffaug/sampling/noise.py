"""Initial noise: one generator per slice, optional correlation between slices, and a second noise mixed in under the mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_diffaug.sampling.seeding import slice_generators

__all__ = ["LOCAL_NOISE", "local_noise", "slice_noise"]

LOCAL_NOISE = 2  # ``purpose`` of the second noise of ``local_noise``, see ``slice_generators``


def slice_noise(seed: int, slice_indices: Sequence[int], shape: tuple[int, ...], rho: float = 0.0, purpose: int = 0) -> Tensor:
    """Standard normal noise for some slices of a volume.

    n_k = rho n_{k-1} + sqrt(1 - rho^2) e_k over consecutive slice indices (an AR(1) process): unit variance for every rho, and
    correlation rho^|i-j| between slices i and j; rho = 0 is independent noise. A gap in the indices starts a new sequence.

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

    >>> noise = slice_noise(7, [3, 4], (4, 8, 8))
    >>> torch.equal(noise[1:], slice_noise(7, [4], (4, 8, 8)))  # a slice does not depend on the others
    True
    """
    if not 0.0 <= rho <= 1.0:
        raise ValueError(f"noise_rho must be in [0, 1], got {rho}")
    kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # torch's defaults may have been changed
    independent = [torch.randn(shape, generator=generator, **kind) for generator in slice_generators(seed, slice_indices, purpose)]
    noise: list[Tensor] = []
    for k, (index, slice_part) in enumerate(zip(slice_indices, independent, strict=True)):
        follows = k > 0 and slice_indices[k - 1] == index - 1
        noise.append(rho * noise[-1] + math.sqrt(1 - rho * rho) * slice_part if follows else slice_part)
    return torch.stack(noise)


def local_noise(eps: Tensor, eta: Tensor, *, scale_g: float, mask: Tensor) -> Tensor:
    """Mix a second noise into ``eps`` under the mask: sqrt(1 - g^2) eps + g eta inside, eps outside.

    The variance is preserved: if eps and eta are independent and standard normal, the result is standard normal for every g. With
    random eps, g is the distance to the sample with g = 0, and the similarity to the original does not depend on it. With eps from
    ``invert_latents``, g is the distance to the original (the local-noise strength of MILA-TMGDiff, Cao et al. 2026).

    Args:
        eps: (B, C, h, w) the noise at g = 0.
        eta: (B, C, h, w) independent standard normal noise.
        scale_g: g in [0, 1]; 0 returns eps, 1 puts eta under the mask.
        mask: broadcastable to eps, non-zero means mix.

    Raises:
        ValueError: g outside [0, 1].

    >>> eps, eta = torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    >>> local_noise(eps, eta, scale_g=0.6, mask=torch.tensor([0.0, 1.0])).flatten().tolist()
    [1.0, 0.800000011920929]
    """
    if not 0.0 <= scale_g <= 1.0:
        raise ValueError(f"noise_scale must be in [0, 1], got {scale_g}")
    return torch.where(mask != 0, math.sqrt(1 - scale_g * scale_g) * eps + scale_g * eta, eps)
