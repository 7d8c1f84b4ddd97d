"""Masks by MedSAM from boxes: of the label, a fixed one, the whole image, from a callable, or of the neighbour slice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
from monai.transforms.transform import MapTransform
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from monai_diffaug.geometry.channels import MANY_CHANNELS, is_one_picture, merged_channels
from monai_diffaug.geometry.grids import check_finite, check_grid, check_image, plain
from monai_diffaug.geometry.picture_plane import plane_of
from monai_diffaug.geometry.slices import from_slices, to_slices
from monai_diffaug.masks.boxes import Box, box_around, connected_components, enlarged
from monai_diffaug.masks.labels import voxels_of
from monai_diffaug.models.medsam import MedSAM, load_medsam
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.transforms.seeded import SeededTransform

__all__ = ["BoxSource", "MedSAMMask", "MedSAMMaskd"]

logger = logging.getLogger(__name__)

BoxSource = Literal["label", "image"] | Sequence[float] | Callable[[int, Tensor], Sequence[float] | None] | None


def _checked(box: Sequence[float], size_hw: tuple[int, int]) -> Box:
    height, width = size_hw
    x0, y0, x1, y1 = (float(v) for v in box)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"box (x0, y0, x1, y1) = ({x0:g}, {y0:g}, {x1:g}, {y1:g}) does not lie within the slice of width {width} "
            f"and height {height}; x runs along the slice's last axis, y along the one before, in pixels"
        )
    return x0, y0, x1, y1


@dataclass(frozen=True)
class _Gate:
    """Acceptance thresholds for MedSAM masks; SAM returns a mask even where the box is empty."""

    min_iou: float
    area_range: tuple[float, float]

    def passes(self, mask_hw: Tensor, predicted_iou: float) -> bool:
        fraction = float(mask_hw.float().mean())
        return fraction > 0 and predicted_iou >= self.min_iou and self.area_range[0] <= fraction <= self.area_range[1]


class MedSAMMask(SeededTransform):
    """Outline the object in a box, slice by slice, with MedSAM; slices that fail the thresholds come back empty.

    Args:
        model: "tiny" (embedded), a MedSAM or SAM ``.pth``, a hub id "org/name@revision", or a live ``Sam``.
        box: source of the boxes. None or "label": the bounding boxes of the label in each slice, enlarged at random; "image":
            the whole slice; (x0, y0, x1, y1) in pixels of the slice as ``slices.to_slices`` returns it, x along its last
            axis (2-D: the axes of the image; 3-D: the radiological view of the plane); or a callable
            ``(slice_index, slice (C, h, w))`` that returns such a box, or None for an empty mask.
        label_value: value of the label that is outlined; None means any above 0 (-1 often means unknown).
        jitter_px: each side of a box around the label or the neighbour's mask moves outward by 0 to ``jitter_px``, in pixels of a slice
            that is 1024 wide.
        max_parts: the label (or the neighbour's mask) is split into connected components. The ``max_parts`` largest get one box each, as
            in MedSAM's training; the mask is their union. 0 draws one box around all.
        propagate: 3-D only: use the box source once, in the middle slice, then take each slice's box from its neighbour's mask, outward in
            both directions until a mask fails the thresholds. With the label as source, the middle is that of the slices it touches.
        plane: anatomical plane of the slices of a 3-D image, "axial", "coronal" or "sagittal".
        min_iou: least predicted IoU, in [0, 1].
        area_range: smallest and largest share of the slice that a mask may cover.
        window: intensity range that the model sees, in the unit of the image, e.g. (-160, 240) HU; None takes the range of each slice,
            whatever its type.
        batch_size: slices per encoder call.
        device: where the model runs; None is the device of the image.
        dtype: floating type of the image encoder, e.g. "float16".
        prob: probability of running the model; otherwise the mask is the label itself, or zeros without a label.

    Raises:
        ValueError: an option is outside its range.

    >>> image = torch.full((1, 64, 64), 100.0)
    >>> image[:, 20:40, 24:44] = 20
    >>> mask = MedSAMMask(box=(20, 16, 48, 44), min_iou=0.0)(image)
    >>> mask.shape, mask.dtype, bool(mask[0, 30, 34]), bool(mask[0, 60, 60])
    (torch.Size([1, 64, 64]), torch.uint8, True, False)
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(
        self,
        model: Any = "tiny",
        box: BoxSource = None,
        *,
        label_value: int | None = None,
        jitter_px: float = 20,
        max_parts: int = 8,
        propagate: bool = False,
        plane: str = "axial",
        min_iou: float = 0.5,
        area_range: tuple[float, float] = (0.0, 0.95),
        window: tuple[float, float] | None = None,
        batch_size: int = 4,
        device: torch.device | str | None = None,
        dtype: str = "float32",
        prob: float = 1.0,
    ) -> None:
        SeededTransform.__init__(self, prob)
        if isinstance(box, str) and box not in ("label", "image"):
            raise ValueError(f"box must be 'label', 'image', four numbers or a callable, got {box!r}")
        if box is not None and not isinstance(box, str) and not callable(box):
            box = tuple(float(v) for v in box)
            if len(box) != 4:
                raise ValueError(f"box must be (x0, y0, x1, y1), got {len(box)} numbers")
        if jitter_px < 0:
            raise ValueError(f"jitter_px must be 0 or more, got {jitter_px}")
        if max_parts < 0:
            raise ValueError(f"max_parts must be 0 (one box around all) or more, got {max_parts}")
        if len(area_range) != 2 or not 0 <= area_range[0] <= area_range[1] <= 1:
            raise ValueError(f"area_range must be (smallest, largest) within [0, 1], got {area_range}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        if window is not None and not window[0] < window[1]:
            raise ValueError(f"window must be (low, high) with low < high, got {window}")
        self.spec = spec_of("medsam", model, dtype)
        self.box: BoxSource = "label" if box is None else box
        self.label_value = label_value
        self.jitter_px = jitter_px
        self.max_parts = max_parts
        self.propagate = propagate
        self.plane = plane
        self.gate = _Gate(min_iou, (float(area_range[0]), float(area_range[1])))
        self.window = window
        self.batch_size = batch_size
        self.device = None if device is None else str(device)

    def __call__(self, image: NdarrayOrTensor, label: NdarrayOrTensor | None = None, randomize: bool = True) -> NdarrayOrTensor:
        """The mask (1, H, W[, D]) uint8 on the grid of the image, in its type and with its meta data.

        Args:
            image: (C, H, W[, D]) with C 1 to 8, any unit. Of channels that are no colours the model sees the mean, each in its window.
            label: (L, H, W[, D]) on the same grid; needed when it is the source of the boxes. Channels are united: leave out the
                background of a one-hot label.
            randomize: draw a new trigger and jitter.
        """
        if randomize:
            self.randomize()
        return self.apply(image, label, seed=self.seed, triggered=self._do_transform)

    def apply(self, image: NdarrayOrTensor, label: NdarrayOrTensor | None, *, seed: int, triggered: bool = True) -> NdarrayOrTensor:
        """The mask of one image for a given seed of the jitter; no random numbers are drawn from the instance.

        Raises:
            GridMismatchError: the label is on another grid.
            ValueError: the image is not (1 to 8, H, W[, D]) or has non-finite voxels in a slice that is outlined, a box lies outside it,
                a label is needed and missing, or its channels cover everything.
        """
        volume = convert_to_tensor(image, track_meta=False)
        check_image(volume, MANY_CHANNELS)
        if label is not None:
            check_grid("label", label, image, channels=None)
        target = self._target(label, volume)
        if not triggered:
            mask = torch.zeros_like(volume[:1], dtype=torch.bool) if target is None else target
        else:
            if target is None and self.box == "label":
                raise ValueError("the box comes from the label, and there is none; give label_key (label), or box=")
            plane = plane_of(image, self.plane)
            label_slices = None if target is None else to_slices(target, plane)[:, 0]
            if not is_one_picture(volume, self.window):
                check_finite(volume)
                volume = merged_channels(volume, self.window)
            mask = from_slices(self._masks(to_slices(volume, plane), label_slices, seed)[:, None], plane)
        result: NdarrayOrTensor = convert_to_dst_type(mask.to(torch.uint8), dst=image, dtype=torch.uint8)[0]
        return result

    def _target(self, label: NdarrayOrTensor | None, volume: Tensor) -> Tensor | None:
        """Pixels of the label that are outlined, (1, H, W[, D]) bool; None without a label."""
        if label is None:
            return None
        values = plain(label)
        chosen = voxels_of(values, self.label_value)
        target: Tensor = chosen.any(0, keepdim=True).to(volume.device)
        if len(values) > 1 and bool(target.all()):
            raise ValueError(
                f"the label's {len(values)} channels cover every voxel, so one of them is the background: leave it out, or add "
                "AsDiscreted(argmax=True) before to make class ids of one-hot channels"
            )
        return target

    def _boxes(self, index: int, image_slice: Tensor, label_slice: Tensor | None, seed: int) -> list[Box]:
        """The boxes of one slice."""
        height, width = image_slice.shape[-2:]
        if self.box == "label":
            return [] if label_slice is None else self._boxes_around(label_slice, index, seed)
        if self.box == "image":
            return [(0.0, 0.0, float(width), float(height))]
        box = self.box(index, image_slice) if callable(self.box) else self.box
        return [] if box is None else [_checked(box, (height, width))]

    def _boxes_around(self, mask_hw: Tensor, index: int, seed: int) -> list[Box]:
        """Boxes enlarged by jitter drawn from (seed, slice index): neither batching nor the order of slices matters."""
        if not mask_hw.any():
            return []
        parts = connected_components(mask_hw)[: self.max_parts] if self.max_parts else [mask_hw]
        grow = np.random.RandomState([seed, index]).uniform(0, self.jitter_px, (len(parts), 4))
        size = (mask_hw.shape[0], mask_hw.shape[1])
        return [enlarged(box_around(part), g, size) for part, g in zip(parts, grow, strict=True)]

    def _unions(self, medsam: MedSAM, embeddings: Tensor, boxes: list[list[Box]], size_hw: tuple[int, int]) -> list[Tensor]:
        """For each slice the union (h, w) bool of its masks that pass the gate; the boxes of all slices are decoded together."""
        counts = [len(of_slice) for of_slice in boxes]
        repeated = embeddings.repeat_interleave(torch.tensor(counts, device=embeddings.device), dim=0)
        all_masks, predicted_iou = medsam.decode(repeated, torch.tensor([box for of_slice in boxes for box in of_slice]), size_hw)
        parts = zip(all_masks.split(counts), predicted_iou.split(counts), strict=True)
        return [self._union(masks, qualities.tolist(), size_hw) for masks, qualities in parts]

    def _union(self, masks: Tensor, qualities: list[float], size_hw: tuple[int, int]) -> Tensor:
        accepted = [mask for mask, quality in zip(masks, qualities, strict=True) if self.gate.passes(mask, quality)]
        return torch.stack(accepted).any(0) if accepted else torch.zeros(size_hw, dtype=torch.bool, device=masks.device)

    def _masks(self, slices: Tensor, label_slices: Tensor | None, seed: int) -> Tensor:
        """Masks (S, h, w) bool of slices (S, C, h, w)."""
        device = torch.device(self.device) if self.device else slices.device
        size = (slices.shape[-2], slices.shape[-1])
        masks = torch.zeros((len(slices), *size), dtype=torch.bool, device=slices.device)
        indices = list(range(len(slices)))
        if self.propagate:
            if self.box == "label" and label_slices is not None:
                indices = torch.nonzero(label_slices.any(2).any(1)).flatten().tolist()
            indices = indices[len(indices) // 2 :][:1]
        boxes = {i: self._boxes(i, slices[i], None if label_slices is None else label_slices[i], seed) for i in indices}
        prompted = [i for i in indices if boxes[i]]
        if not prompted:
            return masks
        medsam = shared_model(self.spec, device, load_medsam)
        for start in range(0, len(prompted), self.batch_size):
            chunk = prompted[start : start + self.batch_size]
            unions = self._unions(medsam, self._encode(medsam, slices[chunk]), [boxes[i] for i in chunk], size)
            for index, union in zip(chunk, unions, strict=True):
                masks[index] = union.to(masks.device)
                if not masks[index].any():
                    logger.debug("slice %d: no mask passed the gate", index)
        if self.propagate:
            self._walk(medsam, slices, masks, range(prompted[0] + 1, len(slices)), seed)
            self._walk(medsam, slices, masks, range(prompted[0] - 1, -1, -1), seed)
        return masks

    def _encode(self, medsam: MedSAM, slices: Tensor) -> Tensor:
        slices = slices.float()
        check_finite(slices)
        return medsam.encode(slices if self.window is None else slices.clamp(*self.window), self.batch_size)

    def _walk(self, medsam: MedSAM, slices: Tensor, masks: Tensor, order: range, seed: int) -> None:
        """Fill ``masks`` along ``order``, each with a box around its neighbour's mask: encoder in batches, decoder in sequence."""
        size = (slices.shape[-2], slices.shape[-1])
        for start in range(0, len(order), self.batch_size):
            chunk = list(order[start : start + self.batch_size])
            if not masks[chunk[0] - order.step].any():
                return
            for index, embedding in zip(chunk, self._encode(medsam, slices[chunk]), strict=True):
                boxes = self._boxes_around(masks[index - order.step], index, seed)
                if not boxes:
                    return
                masks[index] = self._unions(medsam, embedding[None], [boxes], size)[0].to(masks.device)


class MedSAMMaskd(SeededTransform, MapTransform):
    """Add the MedSAM mask of each image to the sample; the mask key is present whether it was triggered or not.

    Args:
        keys: images to outline, each (C, H, W[, D]) with C 1 to 8.
        mask_key: key of the mask, one for each image (a single name for a single image).
        label_key: label that the boxes are drawn around, on the same grid; None when ``box`` names another source.
        allow_missing_keys: skip images that a sample lacks.

    The other arguments are those of ``MedSAMMask``.

    Raises:
        ValueError: not one mask key for each image key.

    >>> label = torch.zeros(1, 64, 64)
    >>> label[:, 20:40, 24:44] = 1
    >>> outline = MedSAMMaskd("image", label_key="label", min_iou=0.0)
    >>> sorted(outline({"image": 100 - 80 * label, "label": label}))
    ['image', 'label', 'mask']
    """

    backend = MedSAMMask.backend

    def __init__(
        self,
        keys: KeysCollection,
        *,
        mask_key: str | Sequence[str] = "mask",
        label_key: str | None = None,
        label_value: int | None = None,
        box: BoxSource = None,
        jitter_px: float = 20,
        max_parts: int = 8,
        propagate: bool = False,
        plane: str = "axial",
        model: Any = "tiny",
        min_iou: float = 0.5,
        area_range: tuple[float, float] = (0.0, 0.95),
        window: tuple[float, float] | None = None,
        batch_size: int = 4,
        device: torch.device | str | None = None,
        dtype: str = "float32",
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        SeededTransform.__init__(self, prob)
        mask_keys = (mask_key,) if isinstance(mask_key, str) else tuple(mask_key)
        if len(mask_keys) != len(self.keys) or len(set(mask_keys)) != len(mask_keys):
            raise ValueError(f"{len(self.keys)} image keys {self.keys} need as many different mask keys, got {mask_keys}")
        self.mask_keys = mask_keys
        self.label_key = label_key
        self.masker = MedSAMMask(
            model,
            box,
            label_value=label_value,
            jitter_px=jitter_px,
            max_parts=max_parts,
            propagate=propagate,
            plane=plane,
            min_iou=min_iou,
            area_range=area_range,
            window=window,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
        )
        if self.masker.box == "label" and label_key is None:
            raise ValueError("the box comes from the label, and there is none; give label_key, or box=")

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        sample = dict(data)
        self.randomize()
        label = None
        if self.label_key is not None:
            if self.label_key not in sample:
                raise KeyError(f"label_key {self.label_key!r} is not in the sample, which has {sorted(map(str, sample))}")
            label = sample[self.label_key]
        for key, mask_key in self.key_iterator(sample, self.mask_keys):
            sample[mask_key] = self.masker.apply(sample[key], label, seed=self.seed, triggered=self._do_transform)
        return sample
