"""Inputs of transforms: check shapes and grids, convert MONAI types to plain tensors and back."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from monai_diffaug.errors import GridMismatchError

__all__ = ["affine_of", "check_finite", "check_grid", "check_image", "like", "plain", "required"]


def required(data: Mapping[Hashable, Any], key: Hashable, advice: str = "name the key that holds it", *, of: str = "sample") -> Any:
    """The item of a sample under a key; the KeyError lists the sample's keys and gives the advice.

    >>> required({"image": 1}, "image")
    1
    """
    if key not in data:
        raise KeyError(f"the {of} has no {key!r} (it has {', '.join(map(str, data))}); {advice}")
    return data[key]


def check_image(img: NdarrayOrTensor, channels: Sequence[int] = (1, 3)) -> None:
    """Raise ValueError unless the image is (C, H, W) or (C, H, W, D) with a number of channels that the caller takes.

    >>> check_image(torch.zeros(1, 64, 64))
    >>> check_image(torch.zeros(4, 64, 64), range(1, 9))
    """
    if img.ndim in (3, 4) and img.shape[0] in channels:
        return
    taken = " or ".join(map(str, channels)) if len(channels) < 3 else f"{min(channels)} to {max(channels)}"
    raise ValueError(
        f"an image must be (C, H, W) or (C, H, W, D) with C {taken}, got shape {tuple(img.shape)}; add EnsureChannelFirstd before, "
        "or SplitDimd where there are more channels, so that each is an image of its own"
    )


def check_finite(volume: Tensor) -> None:
    """Raise ValueError if a plain image has NaN or infinite voxels."""
    if not volume.dtype.is_floating_point or volume.numel() == 0:
        return
    lowest, highest = torch.aminmax(volume)  # both are NaN if one voxel is; needs no boolean copy of the volume
    if not math.isfinite(lowest) or not math.isfinite(highest):
        raise ValueError("the image has non-finite voxels (NaN or infinity); replace them first, e.g. with torch.nan_to_num")


def check_grid(name: str, array: NdarrayOrTensor, img: NdarrayOrTensor, channels: tuple[int, ...] | None = (1,)) -> None:
    """Raise GridMismatchError unless ``array`` is (C, ...) on the image's grid, with C one of ``channels`` (None: any).

    Volumes of equal shape whose affines put a corner more than half a voxel apart are refused as well: only one of them was resampled or
    reoriented. Identity affines are not compared.

    >>> check_grid("mask", torch.zeros(1, 8, 8), torch.zeros(3, 8, 8))
    """
    expected = " or ".join(str((c, *img.shape[1:])) for c in channels or ("C",))
    if tuple(array.shape[1:]) != tuple(img.shape[1:]):
        raise GridMismatchError(
            f"{name} {tuple(array.shape)} is not on the grid of the image {tuple(img.shape)}: expected {expected}; "
            "add ResampleToMatchd before (and EnsureChannelFirstd when the channel is missing)"
        )
    if channels is not None and array.shape[0] not in channels:
        raise GridMismatchError(
            f"{name} {tuple(array.shape)} has {array.shape[0]} channels: expected {expected}; add AsDiscreted(argmax=True) before to make "
            "class ids of one-hot channels, edit before the transform that makes channels of classes, or pick one channel (or add "
            "EnsureChannelFirstd when the channel is missing)"
        )
    _check_affines(name, array, img)


def plain(array: NdarrayOrTensor) -> Tensor:
    """A plain tensor, if possible without a copy; unsigned types without arithmetic in torch become int64.

    >>> plain(torch.zeros(1, 2, dtype=torch.uint16)).dtype
    torch.int64
    """
    tensor = convert_to_tensor(array, track_meta=False)
    bare = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
    wide = bare.dtype in (torch.uint16, torch.uint32, torch.uint64)
    result: Tensor = bare.to(torch.int64) if wide else bare
    return result


def like(tensor: Tensor, target: NdarrayOrTensor) -> NdarrayOrTensor:
    """The tensor with the type, dtype, device and meta data of the target."""
    converted: NdarrayOrTensor = convert_to_dst_type(tensor, target)[0]
    return converted


def affine_of(img: NdarrayOrTensor) -> Tensor | None:
    """(4, 4) voxel to RAS+ world in mm, on the CPU; None for an image without meta data."""
    return img.affine.detach().cpu() if isinstance(img, MetaTensor) else None


def _check_affines(name: str, array: NdarrayOrTensor, img: NdarrayOrTensor) -> None:
    """Raise GridMismatchError if the affines of ``array`` and image put a corner of the grid more than half a voxel apart."""
    affine, image_affine = affine_of(array), affine_of(img)
    if affine is None or image_affine is None or img.ndim != 4:
        return
    affine, image_affine = affine.double(), image_affine.double()
    identity = torch.eye(4, dtype=torch.float64, device="cpu")
    if affine.shape != (4, 4) or image_affine.shape != (4, 4) or torch.equal(affine, identity) or torch.equal(image_affine, identity):
        return
    ends = [identity.new_tensor([0.0, n - 1.0]) for n in img.shape[1:]]
    corners = torch.cat([torch.cartesian_prod(*ends), identity.new_ones(8, 1)], 1)
    apart = float((corners @ (affine - image_affine).T)[:, :3].norm(dim=1).max())
    if apart > 0.5 * float(affine_to_spacing(image_affine, suppress_zeros=False).min()):
        raise GridMismatchError(
            f"{name} and image have one shape, but their affines put a corner of it {apart:.3g} mm apart: was one of them resampled or "
            "turned without the other? ResampleToMatchd brings them together; if the voxels do match, give both the same affine"
        )
