"""The steps of a transplant before the diffusion model: draw a donor, bend it, find it a place, paste it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.data.donor import LESION, Donor
from monai_diffaug.edit.transplant_options import Blend, Donors, Geometry
from monai_diffaug.geometry.lesion_warp import CONTROL_POINTS, Spacing, Warp, WarpedLesion, warp_lesion
from monai_diffaug.masks.blending import join, match_rim, match_spread
from monai_diffaug.masks.free_place import free_place
from monai_diffaug.masks.rim import rim_of, rim_statistics
from monai_diffaug.masks.soft_edge import composite, soft_mask

__all__ = ["Graft", "NoGraftError", "Scene", "donors_for", "draw_graft", "pasted"]

LEAST_SHARE = 0.98  # of lesion and margin on tissue
DONOR_TRIES = 8  # donors that are tried before there is no place for any
LEAST_MARGIN_PX = 2
SOFT_EDGE = 0.5  # standard deviation of the edge within the margin, in its widths


class NoGraftError(ValueError):
    """Nothing can be transplanted; the message is the reason in the record."""


class Scene(NamedTuple):
    """The image that gets a lesion, as slices.

    Attributes:
        slices: (S, C, H, W) in the unit of the image.
        allowed: (S, H, W) bool, where the lesion should lie.
        free: (S, H, W) bool, no label.
        likelihood: (S, H, W) >= 0 of its middle, or None.
        spacing_mm: distances of slices, rows and columns.
        window: lowest and highest intensity of the image.
        is_volume: the image is 3-D.
        in_region: all of the lesion has to be allowed; else 98 % of lesion and margin.
    """

    slices: Tensor
    allowed: NDArray[np.bool_]
    free: NDArray[np.bool_]
    likelihood: NDArray[np.floating[Any]] | None
    spacing_mm: Spacing
    window: tuple[float, float]
    is_volume: bool
    in_region: bool


class Graft(NamedTuple):
    """A lesion at its new place.

    Attributes:
        donor: where it comes from.
        lesion: its pixels on the grid of the image, before they are matched to it, with the margin.
        start: first slice, row and column of ``lesion`` in the image; rows and columns may be negative.
        mask: (S, H, W) bool, the lesion.
        region: (S, H, W) bool, everything that is pasted: the lesion and the margin.
    """

    donor: Donor
    lesion: WarpedLesion
    start: tuple[int, int, int]
    mask: NDArray[np.bool_]
    region: NDArray[np.bool_]


def donors_for(donors: Sequence[Donor], options: Donors, *, is_volume: bool, channels: int, group: str, source: str) -> list[int]:
    """Indices of the donors that a sample may get.

    Args:
        donors: the bank.
        options: finding, modality and excluded groups.
        is_volume: the image is 3-D, so donors have to be; a 2-D image takes slices of volumes too.
        channels: of the image; donors have as many.
        group: of the sample, empty where it has none; its donors are left out.
        source: file of the sample, empty where unknown; donors of this file are left out.

    Raises:
        NoGraftError: there is none.
    """
    words = [(name, {each} if isinstance(each, str) else set(each)) for name in ("finding", "modality") if (each := getattr(options, name))]
    suitable = [
        i
        for i, donor in enumerate(donors)
        if (donor.is_volume or not is_volume)
        and donor.pixels.shape[1] == channels
        and all(getattr(donor.origin, name) in chosen for name, chosen in words)
        and donor.origin.group not in options.exclude_groups
        and not (group and donor.origin.group == group)
        and not (source and _is_same_file(source, donor.origin.source))
    ]
    if not suitable:
        kind = "volumes" if is_volume else "images"
        chosen = "".join(f", {name} {' or '.join(sorted(each))}" for name, each in words)
        raise NoGraftError(f"no donor: none of {len(donors)} is from other groups' {kind} of {channels} channel(s){chosen}")
    return suitable


def draw_graft(rng: np.random.RandomState, donors: Sequence[Donor], scene: Scene, geometry: Geometry, blend: Blend) -> Graft:
    """Draw donor, geometry and place; up to 8 donors are tried.

    Args:
        rng: source of all draws.
        donors: those that ``donors_for`` chose.
        scene: the image.
        geometry, blend: their options; of ``blend`` the margin.

    Raises:
        NoGraftError: no place is free.
    """
    for _ in range(DONOR_TRIES):
        donor = donors[rng.randint(len(donors))]
        pixels, mask = _slices_of(rng, donor, scene.is_volume)
        warp = _drawn(rng, geometry, mask, donor.spacing_mm)
        room = _margin_room(mask, donor, scene, warp, blend)
        lesion = warp_lesion(pixels, mask, donor.spacing_mm, scene.spacing_mm, warp, room, one_slice=not scene.is_volume)
        outline = lesion.mask if scene.in_region else _widened(lesion, blend)
        inner = _box(outline)
        least_share = 1.0 if scene.in_region else LEAST_SHARE
        place = free_place(rng, outline[inner], scene.allowed, scene.free, scene.likelihood, least_share)
        if place is not None:
            start = tuple(first - side.start for first, side in zip(place, inner, strict=True))
            return _at(donor, lesion, (start[0], start[1], start[2]), scene, blend)
    raise NoGraftError("no free place for a donor was found")


def pasted(graft: Graft, scene: Scene, blend: Blend) -> tuple[Tensor, Tensor]:
    """The slices (S, C, H, W) with the lesion, and the weights (S, H, W) of what was pasted; where they are 0 nothing changed."""
    box, part = _overlap(graft.start, graft.lesion.mask.shape, graft.mask.shape)
    near = scene.slices[box[0], :, box[1], box[2]]
    image = near.float().numpy().swapaxes(0, 1)
    region = graft.region[box]
    pixels = graft.lesion.pixels[:, *part]
    if blend.match != "none":
        pixels = _matched(pixels, graft, scene, blend)
    if blend.join == "gradient":
        pixels = join(pixels, image, region, scene.spacing_mm)
    width = SOFT_EDGE * _margin_px(graft.lesion.mask, blend)
    weights = torch.stack([soft_mask(torch.from_numpy(each), width, "inner") for each in region])
    result = scene.slices.clone(memory_format=torch.contiguous_format)
    result[box[0], :, box[1], box[2]] = composite(near, torch.from_numpy(np.ascontiguousarray(pixels.swapaxes(0, 1))), weights[:, None])
    everywhere = torch.zeros(graft.mask.shape)
    everywhere[box] = weights
    return result, everywhere


def _matched(pixels: NDArray[np.float32], graft: Graft, scene: Scene, blend: Blend) -> NDArray[np.float32]:
    """Pixels in the intensities of the tissue around the new place; unchanged where there is none."""
    rim = rim_of(graft.mask) & scene.free
    if not rim.any():
        return pixels
    near = _box(rim)
    surround = rim_statistics(scene.slices[near[0], :, near[1], near[2]].float().numpy().swapaxes(0, 1), rim[near])
    if blend.match == "spread":
        return match_spread(pixels, graft.donor.surround, surround)
    means, new_means = (tuple(mean for mean, _ in each) for each in (graft.donor.surround, surround))
    return match_rim(pixels, means, new_means, graft.donor.window, scene.window)


def _widened(lesion: WarpedLesion, blend: Blend) -> NDArray[np.bool_]:
    """The lesion and the margin around it in its slices, without what the donor has there besides the lesion."""
    from scipy.ndimage import distance_transform_edt

    margin = _margin_px(lesion.mask, blend)
    wide = np.stack([distance_transform_edt(~each) <= margin if each.any() else each for each in lesion.mask])
    return (wide & ~lesion.other) | lesion.mask


def _is_same_file(file: str, source: str) -> bool:
    """Whether a path ends in the name that a donor's image has in its datalist."""
    return file == source or ("." in source and file.endswith(f"/{source}"))


def _slices_of(rng: np.random.RandomState, donor: Donor, is_volume: bool) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Pixels and mask of a donor; for a 2-D image one of its slices, with at least half of the largest area."""
    draw = rng.random_sample()
    if is_volume or len(donor.mask) == 1:
        return donor.pixels, donor.mask
    areas = (donor.mask == LESION).sum((1, 2))
    large = np.flatnonzero(2 * areas >= areas.max())
    chosen = int(large[int(draw * len(large))])
    return donor.pixels[chosen : chosen + 1], donor.mask[chosen : chosen + 1]


def _drawn(rng: np.random.RandomState, geometry: Geometry, mask: NDArray[np.uint8], spacing_mm: Spacing) -> Warp:
    """Draw the geometry; as many draws whatever the options."""
    coins, turn, size = rng.random_sample(2) < 0.5, rng.uniform(-1, 1), rng.random_sample()
    bend = rng.standard_normal((2, CONTROL_POINTS, CONTROL_POINTS)) * geometry.elastic
    mirror = (
        bool(coins[0]) and geometry.mirror in ("rows", "both"),
        bool(coins[1]) and geometry.mirror in ("columns", "both"),
    )
    if geometry.size_mm is None:
        low, high = geometry.scale_range
        scale = low + size * (high - low)
    else:
        low, high = geometry.size_mm
        scale = (low + size * (high - low)) / _longer_mm(mask, spacing_mm)
    return Warp(mirror, turn * geometry.rotate_deg, float(scale), bend if geometry.elastic else None)


def _longer_mm(mask: NDArray[np.uint8], spacing_mm: Spacing) -> float:
    """Longer side of a donor's lesion in its slices."""
    _, rows, columns = _box(mask == LESION)
    return max((rows.stop - rows.start) * spacing_mm[1], (columns.stop - columns.start) * spacing_mm[2])


def _margin_room(mask: NDArray[np.uint8], donor: Donor, scene: Scene, warp: Warp, blend: Blend) -> int:
    """Pixels of the target around the lesion that the margin and the join need."""
    longer_px = _longer_mm(mask, donor.spacing_mm) * warp.scale / min(scene.spacing_mm[1:])
    return max(LEAST_MARGIN_PX, round(1.5 * blend.margin * longer_px)) + 2


def _margin_px(mask: NDArray[np.bool_], blend: Blend) -> int:
    _, rows, columns = _box(mask)
    return max(LEAST_MARGIN_PX, round(blend.margin * max(rows.stop - rows.start, columns.stop - columns.start)))


def _at(donor: Donor, lesion: WarpedLesion, start: tuple[int, int, int], scene: Scene, blend: Blend) -> Graft:
    """The lesion at a place, with a margin that touches neither labels nor what the donor has there besides the lesion."""
    mask, region = np.zeros(scene.free.shape, bool), np.zeros(scene.free.shape, bool)
    box, part = _overlap(start, lesion.mask.shape, scene.free.shape)
    mask[box], region[box] = lesion.mask[part], _widened(lesion, blend)[part]
    return Graft(donor, lesion, start, mask, (region & scene.free) | mask)


def _overlap(start: Sequence[int], size: Sequence[int], limits: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a box that lies in an image: its slices in the image, and in the box."""
    box = tuple(slice(max(first, 0), min(first + n, most)) for first, n, most in zip(start, size, limits, strict=True))
    return box, tuple(slice(side.start - first, side.stop - first) for side, first in zip(box, start, strict=True))


def _box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """Bounding box of a mask that is not empty."""
    slices, rows, columns = (np.flatnonzero(mask.any(axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    return slice(slices[0], slices[-1] + 1), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
