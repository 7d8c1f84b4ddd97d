"""Judge an edit by segmenting it: what was painted must be found again, where it was asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from monai.config.type_definitions import NdarrayOrTensor
from monai.transforms.transform import Transform
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor

from monai_diffaug.edit.denoise import PURPOSES
from monai_diffaug.edit.options import check_group
from monai_diffaug.edit.signature import Described
from monai_diffaug.edit.stack import Stack, open_stack
from monai_diffaug.edit.validation_options import Validator, check_share
from monai_diffaug.geometry.grids import affine_of, check_finite, check_grid, check_image, plain
from monai_diffaug.geometry.roi import Roi, crop, paste
from monai_diffaug.geometry.slices import from_slices, slab_of, slice_plane, to_slices
from monai_diffaug.geometry.squares import squares_of
from monai_diffaug.geometry.window import Window, window_of
from monai_diffaug.masks.boxes import connected_components
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.models.validator import load_validator
from monai_diffaug.sampling.seeding import slice_generators
from monai_diffaug.transforms.lesion_novelty import Novelty

__all__ = ["LatentValidate", "Verdict", "labelled_elsewhere"]

NOISE_PURPOSE = 7  # the stream of seeding.slice_generators that the validator's noise comes from
LEAST_KNOWN = 0.5  # share of a predicted part that lies on known findings or their rim, from which all of it is theirs


@dataclass(frozen=True)
class Verdict:
    """What the validator says of one edit; areas are pooled over the slices that the mask touches.

    Attributes:
        accepted: all conditions are met.
        score: Dice of the prediction and the mask in the crops, in [0, 1].
        coverage: share of the mask that the prediction covers.
        false_positive: predicted area in the dilated box, outside the mask and its rim, relative to the mask's area.
        change: mean absolute difference to the original inside the mask, relative to the window's width; -1 without an original.
        reason: the conditions that are not met, empty when accepted.
        predicted: (1, H, W[, D]) bool, the prediction within the dilated boxes on the image's grid.
        copied: a guard found the edit too near to a training lesion.
    """

    accepted: bool
    score: float
    coverage: float
    false_positive: float
    change: float
    reason: str
    predicted: Tensor
    copied: bool = False

    def unless_copied(self, found: Novelty) -> Verdict:
        """This verdict, or a refusal when the lesion repeats a training lesion."""
        if found.novel:
            return self
        return replace(self, accepted=False, copied=True, reason="; ".join(filter(None, (self.reason, found.reason))))


class LatentValidate(Transform, Described):
    """Segment the edited image around the mask and compare: deterministic for a given seed.

    Accepts iff Dice >= ``min_dice``, coverage >= ``min_coverage``, false positives <= ``max_false_positive`` and the change inside
    the mask >= ``min_change``.

    What is predicted on findings that are known to be there besides (``known``) counts neither as found nor as false: their pixels, a
    band of ``rim`` around them (up to the mask's own band) and, as no outline is met to the pixel, every connected part of the
    prediction beyond the mask's band that lies on them by half.

    Lesions that lie so far apart in a slice that their common square would be made smaller are looked at in squares of their own, as
    they are painted (``monai_diffaug.geometry.squares``).

    Args:
        model: "tiny" (embedded), a folder, a network (logits) or a callable (probabilities), see ``load_validator``.
        min_dice: least Dice of prediction and mask (DiffAug's neighbours in the literature: 0.7 to 0.8).
        window: intensities the model sees, in the image's unit; None takes 0 to 255 for uint8, else the 0.5 and 99.5 percentiles of the
            original (or of the image).
        plane: "axial", "coronal" or "sagittal", found in the affine.
        device: where the model runs; None means where the image is.
        options: thresholds and crops, see ``Validator``.

    Raises:
        ValueError: a threshold is outside its range.
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(
        self,
        model: Any = "tiny",
        min_dice: float = 0.7,
        *,
        window: tuple[float, float] | None = None,
        plane: str = "axial",
        device: torch.device | str | None = None,
        options: Validator | None = None,
    ) -> None:
        options = Validator() if options is None else options
        check_group("options", options, Validator)
        check_share("min_dice", min_dice)
        self.spec = spec_of("validator", model, options.dtype)
        self.min_dice = min_dice
        self.options = options
        self.window = window
        self.plane = plane
        self.device = None if device is None else str(device)

    def __call__(
        self,
        image: NdarrayOrTensor,
        mask: NdarrayOrTensor,
        original: NdarrayOrTensor | None = None,
        *,
        known: NdarrayOrTensor | None = None,
        seed: int = 0,
        min_dice: float | None = None,
    ) -> Verdict:
        """Judge an edit.

        Args:
            image: the edited (C, H, W[, D]), C = 1 or 3, any unit.
            mask: (1, H, W[, D]) on the same grid; non-zero where the edit was asked for.
            original: the image before the edit; without it the change is not judged.
            known: (1, H, W[, D]) on the same grid; non-zero where findings of the same kind were before the edit. Inside the mask it
                says nothing.
            seed: of the model's noise, in [0, MAX_SEED]: same seed, same verdict.
            min_dice: instead of the instance's.

        Raises:
            GridMismatchError: mask, original or known findings on another grid.
            ValueError: the image is not (1 or 3, H, W[, D]), or the original (without one, the image) has non-finite voxels.
        """
        volume = convert_to_tensor(image, track_meta=False)
        check_image(volume)
        wanted = self._on_grid("mask", mask, volume).ne(0).any(0, keepdim=True)
        before = None if original is None else self._on_grid("original", original, volume)
        others = torch.zeros_like(wanted)
        if known is not None:
            others = self._on_grid("known", known, volume).ne(0).any(0, keepdim=True) & ~wanted
        if not wanted.any():
            return Verdict(False, 0.0, 0.0, 0.0, -1.0, "the mask is empty", wanted)
        affine = affine_of(image)
        plane = slice_plane(affine, self.plane, volume.ndim - 1)
        reference = volume if before is None else before
        check_finite(reference)
        window = window_of(reference, self.window)
        change = -1.0 if before is None else self._change(volume, before, wanted, window)
        stack = open_stack(volume, wanted, plane, slab_of(wanted, plane), window, prompt=(), seed=seed)
        counts, found = self._counts(stack, to_slices(stack.slab.of(others), plane))
        predicted = torch.zeros_like(wanted)
        stack.slab.of(predicted).copy_(from_slices(found, plane))
        return self._verdict(counts, change, predicted, self.min_dice if min_dice is None else min_dice)

    @staticmethod
    def _on_grid(name: str, array: NdarrayOrTensor, volume: Tensor) -> Tensor:
        tensor = convert_to_tensor(array, track_meta=False)
        check_grid(name, tensor, volume, channels=None)
        placed: Tensor = tensor.to(volume.device)
        return placed

    @staticmethod
    def _change(volume: Tensor, before: Tensor, wanted: Tensor, window: Window) -> float:
        """Mean absolute difference inside the mask, of what the model sees, as a share of the window."""
        inside = wanted.expand(volume.shape)
        return float((window.to_model(volume[inside]) - window.to_model(before[inside])).abs().mean()) / 2

    @torch.no_grad()
    def _counts(self, stack: Stack, known: Tensor) -> tuple[Tensor, Tensor]:
        """(4,) areas in pixels of the slices - mask, prediction, both, false positives - and the prediction (S, 1, h, w) bool.

        What is predicted on the ``known`` findings, (S, 1, h, w) bool outside the masks, is left out.
        """
        device = torch.device(self.device) if self.device else stack.slices.device
        validator = shared_model(self.spec, device, load_validator)
        size = validator.size_px or self.options.size_px
        squares = squares_of(stack.masks, stack.indices, size, self.options.context, self.options.min_side_px)
        in_row = Counter(one.row for one in squares)
        parts = [one.part if in_row[one.row] > 1 else 0 for one in squares]  # noise of their own for squares that share a slice only
        predicted = torch.zeros_like(stack.masks)
        counts = torch.zeros(4, dtype=torch.float64)
        for start in range(0, len(squares), self.options.batch_size):
            chunk = squares[start : start + self.options.batch_size]
            crops = [crop(stack.window.to_model(stack.slices[one.row]), one.roi, size) for one in chunk]
            images = torch.stack(crops).clamp(-1, 1).expand(-1, 3, -1, -1)
            noise = [
                slice_generators(stack.seed, [stack.slab.first + one.row], NOISE_PURPOSE + part * PURPOSES)[0]
                for one, part in zip(chunk, parts[start : start + len(chunk)], strict=True)
            ]
            probabilities = validator.predict(images, noise).to(stack.slices.device)
            for one, probability in zip(chunk, probabilities, strict=True):
                roi, target = one.roi, _in_crop(one.mask[None], one.roi, size)
                apart = _in_crop(known[one.row], roi, size) & ~target
                found = probability[0] > 0.5
                box = self._dilated_box(target)
                allowed = _grown(target, round(self.options.rim * size))
                if apart.any():
                    theirs = self._of_others(found, allowed, apart)
                    found, box = found & ~theirs, box & ~theirs
                areas = torch.stack([target.sum(), found.sum(), (found & target).sum(), (found & box & ~allowed).sum()])
                counts += areas.double().cpu() * (roi.side / size) ** 2
                predicted[one.row] |= paste(one.mask[None].float() * 0, probability * box, roi) > 0.5
        return counts, predicted

    def _of_others(self, found: Tensor, allowed: Tensor, apart: Tensor) -> Tensor:
        """(size, size) bool: where a prediction belongs to the known findings ``apart``, which lie outside the mask."""
        theirs = apart | (_grown(apart, round(self.options.rim * len(apart))) & ~allowed)
        for part in connected_components(found & ~allowed):
            if int((part & theirs).sum()) >= LEAST_KNOWN * int(part.sum()):
                theirs = theirs | part
        return theirs

    def _dilated_box(self, target: Tensor) -> Tensor:
        """(size, size) bool: the bounding box of a mask, enlarged by ``box_margin`` of its sides."""
        box = torch.zeros_like(target)
        rows, columns = torch.nonzero(target.any(1)).flatten(), torch.nonzero(target.any(0)).flatten()
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        y, x = round(self.options.box_margin * (bottom - top)), round(self.options.box_margin * (right - left))
        box[max(0, top - y) : bottom + y, max(0, left - x) : right + x] = True
        return box

    def _verdict(self, counts: Tensor, change: float, predicted: Tensor, min_dice: float) -> Verdict:
        area, found, both, false = counts.tolist()
        score = 2 * both / (area + found)
        coverage, false_positive = both / area, false / area
        reasons = []
        if found == 0:
            reasons.append("the validator found nothing")
        elif score < min_dice:
            reasons.append(f"Dice {score:.2f} < {min_dice:.2f}")
        if found and coverage < self.options.min_coverage:
            reasons.append(f"coverage {coverage:.2f} < {self.options.min_coverage:.2f}")
        if false_positive > self.options.max_false_positive:
            reasons.append(f"false positives {false_positive:.2f} > {self.options.max_false_positive:.2f} of the mask")
        if 0 <= change < self.options.min_change:
            reasons.append(f"change {change:.3f} < {self.options.min_change:.3f} of the window")
        accepted = not reasons and score >= min_dice and coverage >= self.options.min_coverage
        return Verdict(accepted, score, coverage, false_positive, change, "; ".join(reasons), predicted)


def labelled_elsewhere(label: NdarrayOrTensor | None, mask: NdarrayOrTensor, value: int) -> Tensor | None:
    """(1, H, W[, D]) bool: where the label of an edited image holds ``value`` outside the mask, so what was labelled before the edit.

    None without a label on the mask's grid, for an erasing edit (``value`` 0), and where the label inside the mask is not ``value``: then
    the edit did not paint it there, and ``value`` may be a class of which the finding is none (an organ).

    Args:
        label: (1, H, W[, D]) class ids after the edit.
        mask: (1, H, W[, D]), non-zero where the edit was asked for.
        value: the class id that the edit paints.
    """
    if label is None or value == 0 or tuple(getattr(label, "shape", ())) != (1, *mask.shape[1:]):
        return None
    holds = plain(label) == value
    asked = plain(mask).to(holds.device).ne(0).any(0, keepdim=True)
    return holds & ~asked if bool(holds[asked].all()) else None


def _in_crop(mask: Tensor, roi: Roi, size: int) -> Tensor:
    """(size, size) bool: a mask (1, h, w) in the square, never empty where it has a pixel."""
    covered = crop(mask.float(), roi, size)[0]
    return covered > min(0.5, 0.5 * float(covered.max()))


def _grown(mask: Tensor, radius: int) -> Tensor:
    """A mask (h, w) bool with a band of ``radius`` pixels around it."""
    return F.max_pool2d(mask[None, None].float(), 2 * radius + 1, 1, radius)[0, 0] > 0 if radius else mask
