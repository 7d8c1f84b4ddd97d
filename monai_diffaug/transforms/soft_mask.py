"""``SoftMask`` and ``SoftMaskd``: turn a hard mask into blending weights."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor

from monai_diffaug.edit.signature import Described
from monai_diffaug.geometry.grids import affine_of
from monai_diffaug.geometry.slices import PLANES, from_slices, pixel_mm, slice_plane, to_slices
from monai_diffaug.masks.soft_edge import SOFT_MODES, soft_mask

__all__ = ["SoftMask", "SoftMaskD", "SoftMaskDict", "SoftMaskd"]


class SoftMask(Transform, Described):
    """Weights in [0, 1] around a mask, slice by slice (Soft Mask Inpainting Strategy, MedSoft-Diffusion 2025).

    Args:
        width_px: standard deviation of the Gaussian edge in pixels; 0 keeps the mask hard.
        width_mm: the same width in millimetres (without an affine: pixels); replaces ``width_px``.
        mode: "grow", "inner" or "centre", see ``monai_diffaug.masks.soft_edge.soft_mask``.
        plane: anatomical plane of the slices of a 3-D mask.

    Raises:
        ValueError: an option out of range.

    >>> mask = torch.zeros(1, 32, 32)
    >>> mask[:, 12:20, 12:20] = 1
    >>> weights = SoftMask(width_px=2.0)(mask)
    >>> float(weights[0, 16, 16]), 0 < float(weights[0, 16, 22]) < 1, float(weights[0, 16, 31])
    (1.0, True, 0.0)
    """

    def __init__(self, width_px: float = 2.6, *, width_mm: float | None = None, mode: str = "grow", plane: str = "axial") -> None:
        for name, width in (("width_px", width_px), ("width_mm", width_mm)):
            if width is not None and width < 0:
                raise ValueError(f"{name} must be >= 0, got {width}")
        if mode not in SOFT_MODES:
            raise ValueError(f"mode must be one of {', '.join(SOFT_MODES)}, got {mode!r}")
        if plane not in PLANES:
            raise ValueError(f"plane must be one of {', '.join(PLANES)}, got {plane!r}")
        self.width_px = width_px
        self.width_mm = width_mm
        self.mode = mode
        self.plane = plane

    def __call__(self, mask: NdarrayOrTensor) -> NdarrayOrTensor:
        """Weights (1, H, W[, D]) float32 of a mask (1, H, W[, D]), non-zero inside; 0 where nothing may change.

        Raises:
            ValueError: the mask has several channels, or none.
        """
        tensor = convert_to_tensor(mask, track_meta=False)
        if tensor.ndim not in (3, 4) or tensor.shape[0] != 1:
            raise ValueError(
                f"a mask must be (1, H, W) or (1, H, W, D), got shape {tuple(tensor.shape)}; add EnsureChannelFirstd before, or "
                "AsDiscreted(argmax=True) to make class ids of one-hot channels"
            )
        affine = affine_of(mask)
        plane = slice_plane(affine, self.plane, tensor.ndim - 1)
        slices = to_slices(tensor, plane)
        width_px = self.width_px if self.width_mm is None else self.width_mm / pixel_mm(affine, plane)
        soft = torch.stack([soft_mask(each[0], width_px, self.mode) for each in slices])[:, None]
        converted: NdarrayOrTensor = convert_to_dst_type(from_slices(soft, plane).contiguous(), mask, dtype=torch.float32)[0]
        return converted


class SoftMaskd(MapTransform, Described):
    """Dictionary form of ``SoftMask``.

    Args:
        keys: masks, each (1, H, W[, D]).
        width_px, width_mm, mode, plane: as in ``SoftMask``.
        allow_missing_keys: skip masks that a sample lacks.

    >>> SoftMaskd("mask", width_mm=3.0)({"mask": torch.ones(1, 32, 32)})["mask"].dtype
    torch.float32
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        width_px: float = 2.6,
        width_mm: float | None = None,
        mode: str = "grow",
        plane: str = "axial",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.soften = SoftMask(width_px, width_mm=width_mm, mode=mode, plane=plane)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.soften(d[key])
        return d


SoftMaskD = SoftMaskDict = SoftMaskd
