"""Judge an edit by segmenting it: the painted finding must be found again inside the mask."""

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
from monai_diffaug.edit.stack import ShownChannel, Stack, open_stack, shown_channels
from monai_diffaug.edit.validation_options import Validator, check_share
from monai_diffaug.geometry.channels import MANY_CHANNELS, is_one_picture, varied_channels, windows_of
from monai_diffaug.geometry.grids import check_finite, check_grid, check_image, plain
from monai_diffaug.geometry.picture_plane import plane_of
from monai_diffaug.geometry.roi import Roi, crop, paste
from monai_diffaug.geometry.slices import from_slices, slab_of, to_slices
from monai_diffaug.geometry.squares import squares_of
from monai_diffaug.geometry.window import Window, window_of
from monai_diffaug.masks.boxes import connected_components
from monai_diffaug.masks.labels import LabelValue, class_values, voxels_of_any
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.models.validator import load_validator
from monai_diffaug.sampling.seeding import slice_generators
from monai_diffaug.transforms.lesion_novelty import Novelty

__all__ = ["LatentValidate", "Verdict", "labelled_elsewhere"]

NOISE_PURPOSE = 7  # stream of ``seeding.slice_generators`` for the validator's noise
TEXTURE_RIM_PX = 2  # soft edges of a flat patch have differences too
LEAST_DEEP_PX = 9  # of a mask without its rim; of a smaller one the rim counts too
LEAST_KNOWN = 0.5  # share of a connected part of the prediction that lies on known findings: from here on it belongs to them


@dataclass(frozen=True)
class Verdict:
    """The validator's verdict on one edit; areas are pooled over the slices that the mask touches.

    Attributes:
        accepted: all conditions are met.
        score: Dice of the prediction and the mask in the crops, in [0, 1].
        coverage: share of the mask that the prediction covers.
        false_positive: predicted area in the dilated box, outside the mask and its rim, relative to the mask's area.
        change: mean absolute difference to the original inside the mask, relative to the window's width; -1 without an original.
        reason: the conditions that are not met, empty when accepted.
        predicted: (1, H, W[, D]) bool, the prediction within the dilated boxes on the image's grid.
        copied: a ``LesionNovelty`` found the edit too close to a training lesion.
        texture: mean absolute difference of neighbouring pixels inside the mask, relative to the window's width; -1 if it is not judged.

    >>> import torch
    >>> verdict = LatentValidate()(torch.rand(1, 64, 64), torch.zeros(1, 64, 64))
    >>> verdict.accepted, verdict.reason
    (False, 'the mask is empty')
    """

    accepted: bool
    score: float
    coverage: float
    false_positive: float
    change: float
    reason: str
    predicted: Tensor
    copied: bool = False
    texture: float = -1.0

    def unless_copied(self, novelty: Novelty) -> Verdict:
        """This verdict, or a rejection when the lesion repeats a training lesion."""
        if novelty.novel:
            return self
        return replace(self, accepted=False, copied=True, reason="; ".join(filter(None, (self.reason, novelty.reason))))


class LatentValidate(Transform, Described):
    """Segment the edited image around the mask and compare; deterministic for a given seed.

    Accepts if Dice >= ``min_dice``, coverage >= ``min_coverage``, false positives <= ``max_false_positive``, change inside the mask >=
    ``min_change`` and texture >= ``min_texture`` (see ``Validator``).

    Predictions on pre-existing findings (``known``) are ignored: their pixels, a band of width ``rim`` around them (it ends at the band
    of the mask), and every connected component of the prediction outside the mask's band of which at least half lies there.

    Lesions that are too far apart in a slice for one square at full resolution get one square each, as when they are painted
    (``monai_diffaug.geometry.squares``).

    Args:
        model: "tiny" (embedded), a folder, a network (logits) or a callable (probabilities), see ``load_validator``.
        min_dice: least Dice of prediction and mask (0.7 to 0.8 in the literature next to DiffAug).
        window: intensity range that the model sees, in the unit of the image; None takes the default of the original (or of
            the image), see ``window_of``.
        plane: anatomical plane of the slices of a 3-D image, "axial", "coronal" or "sagittal".
        device: where the model runs; None is the device of the image.
        options: thresholds and crops, see ``Validator``.

    Raises:
        TypeError: ``options`` is of another class.
        ValueError: ``min_dice`` is outside [0, 1].

    >>> import torch
    >>> image, mask = torch.full((1, 64, 64), 0.2), torch.zeros(1, 64, 64)
    >>> mask[:, 24:40, 24:40] = 1
    >>> bright = LatentValidate(lambda crops: (crops[:, :1] > 0).float(), window=(0, 1))
    >>> bright(image + 0.7 * mask, mask, image).accepted, bright(image, mask).reason
    (True, 'the validator found nothing')
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
        self.spec = spec_of("validator", model, options.dtype, trust_config=options.trust_config)
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
        prompt: str = "",
    ) -> Verdict:
        """Judge an edit.

        Args:
            image: the edited (C, H, W[, D]), C 1 to 8, any unit. Channels that are no colours are judged one by one, and their predictions
                averaged, see ``Validator.channels``.
            mask: (1, H, W[, D]) on the same grid; non-zero where the edit should be.
            original: the image before the edit; without it the change is not judged.
            known: (1, H, W[, D]) on the same grid; non-zero where findings of the same kind were before the edit. Pixels inside the mask
                are ignored.
            seed: of the model's noise, in [0, MAX_SEED]: same seed, same verdict.
            min_dice: replaces the threshold of the instance.
            prompt: of the edit, for the default window of a CT in HU, see ``ct_window``.

        Raises:
            GridMismatchError: mask, original or known findings on another grid.
            ValueError: the image is not (1 to 8, H, W[, D]), or the original (without one, the image) has non-finite voxels.
        """
        volume = convert_to_tensor(image, track_meta=False)
        check_image(volume, MANY_CHANNELS)
        region = _on_grid("mask", mask, volume).ne(0).any(0, keepdim=True)
        before = None if original is None else _on_grid("original", original, volume)
        known_region = torch.zeros_like(region)
        if known is not None:
            known_region = _on_grid("known", known, volume).ne(0).any(0, keepdim=True) & ~region
        if not region.any():
            return Verdict(False, 0.0, 0.0, 0.0, -1.0, "the mask is empty", region)
        plane = plane_of(image, self.plane)
        reference = volume if before is None else before
        check_finite(reference)
        channels = self._channels(reference, prompt)
        window = channels[0].window if channels else window_of(reference, self.window, prompt)
        change = -1.0
        if before is not None:
            views = [(each.window, slice(each.index, each.index + 1)) for each in channels] or [(window, slice(None))]
            change = sum(_change(volume[part], before[part], region, own) for own, part in views) / len(views)
        stack = open_stack(volume, region, plane, slab_of(region, plane), window, prompt=(), seed=seed, channels=channels)
        counts, prediction = self._counts(stack, to_slices(stack.slab.of(known_region), plane))
        predicted = torch.zeros_like(region)
        stack.slab.of(predicted).copy_(from_slices(prediction, plane))
        texture = _texture(stack) if self.options.min_texture > 0 else -1.0
        return self._verdict(counts, change, texture, predicted, self.min_dice if min_dice is None else min_dice)

    def _channels(self, image: Tensor, prompt: str = "") -> tuple[ShownChannel, ...]:
        """The channels that are judged one by one; empty for a grey or colour picture."""
        chosen = self.options.channels
        if chosen is None and is_one_picture(image, self.window):
            return ()
        indices = varied_channels(image) if chosen is None else chosen
        if max(indices) >= len(image):
            raise ValueError(f"Validator(channels=) names channel {max(indices)}, and the image has {len(image)} (0 to {len(image) - 1})")
        windows = windows_of(image[list(indices)], self.window, prompt)
        return tuple(ShownChannel(index, window, ()) for index, window in zip(indices, windows, strict=True))

    def _pooled(self, probabilities: Tensor) -> Tensor:
        """One prediction (N, 1, h, w) from those of the channels (K, N, 1, h, w)."""
        return probabilities.mean(0)

    @torch.no_grad()
    def _counts(self, stack: Stack, known: Tensor) -> tuple[Tensor, Tensor]:
        """(4,) areas in pixels of the slices (mask, prediction, both, false positives), and the prediction (S, 1, h, w) bool.

        Predictions on the ``known`` findings, (S, 1, h, w) bool outside the masks, are left out.
        """
        device = torch.device(self.device) if self.device else stack.slices.device
        validator = shared_model(self.spec, device, load_validator)
        size = validator.size_px or self.options.size_px
        squares = squares_of(stack.masks, stack.indices, size, self.options.context, self.options.min_side_px)
        per_row = Counter(square.row for square in squares)
        parts = [square.part if per_row[square.row] > 1 else 0 for square in squares]  # squares that share a slice differ in their noise
        predicted = torch.zeros_like(stack.masks)
        counts = torch.zeros(4, dtype=torch.float64)
        for start in range(0, len(squares), self.options.batch_size):
            chunk = squares[start : start + self.options.batch_size]
            of_channels = []
            for channel in stack.channels or (None,):
                window = stack.window if channel is None else channel.window
                crops = [crop(window.to_model(shown_channels(stack.slices[square.row], channel)), square.roi, size) for square in chunk]
                images = torch.stack(crops).clamp(-1, 1).expand(-1, 3, -1, -1)
                generators = [
                    slice_generators(stack.seed, [stack.slab.first + square.row], NOISE_PURPOSE + part * PURPOSES)[0]
                    for square, part in zip(chunk, parts[start : start + len(chunk)], strict=True)
                ]
                of_channels.append(validator.predict(images, generators).to(stack.slices.device))
            probabilities = of_channels[0] if len(of_channels) == 1 else self._pooled(torch.stack(of_channels))
            for square, probability in zip(chunk, probabilities, strict=True):
                roi, target = square.roi, _in_crop(square.mask[None], square.roi, size)
                known_crop = _in_crop(known[square.row], roi, size) & ~target
                prediction = probability[0] > 0.5
                box = self._dilated_box(target)
                band = _grown(target, round(self.options.rim * size))
                if known_crop.any():
                    of_known = self._of_known(prediction, band, known_crop)
                    prediction, box = prediction & ~of_known, box & ~of_known
                false = prediction & box & ~band
                areas = torch.stack([target.sum(), prediction.sum(), (prediction & target).sum(), false.sum()])
                counts += areas.double().cpu() * (roi.side / size) ** 2
                predicted[square.row] |= paste(square.mask[None].float() * 0, probability * box, roi) > 0.5
        return counts, predicted

    def _of_known(self, prediction: Tensor, band: Tensor, known: Tensor) -> Tensor:
        """(size, size) bool: pixels that belong to the ``known`` findings, which lie outside the mask; ``band`` is the mask and its rim."""
        of_known = known | (_grown(known, round(self.options.rim * len(known))) & ~band)
        for part in connected_components(prediction & ~band):
            if int((part & of_known).sum()) >= LEAST_KNOWN * int(part.sum()):
                of_known = of_known | part
        return of_known

    def _dilated_box(self, target: Tensor) -> Tensor:
        """(size, size) bool: the bounding box of a mask, enlarged by ``box_margin`` of its sides."""
        box = torch.zeros_like(target)
        rows, columns = torch.nonzero(target.any(1)).flatten(), torch.nonzero(target.any(0)).flatten()
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        y, x = round(self.options.box_margin * (bottom - top)), round(self.options.box_margin * (right - left))
        box[max(0, top - y) : bottom + y, max(0, left - x) : right + x] = True
        return box

    def _verdict(self, counts: Tensor, change: float, texture: float, predicted: Tensor, min_dice: float) -> Verdict:
        options = self.options
        area, predicted_area, both, false = counts.tolist()
        score = 2 * both / (area + predicted_area)
        coverage, false_positive = both / area, false / area
        reasons = []
        if predicted_area == 0:
            reasons.append("the validator found nothing")
        elif score < min_dice:
            reasons.append(f"Dice {score:.2f} < {min_dice:.2f}")
        if predicted_area and coverage < options.min_coverage:
            reasons.append(f"coverage {coverage:.2f} < {options.min_coverage:.2f}")
        if false_positive > options.max_false_positive:
            reasons.append(f"false positives {false_positive:.2f} > {options.max_false_positive:.2f} of the mask")
        if 0 <= change < options.min_change:
            reasons.append(f"change {change:.3f} < {options.min_change:.3f} of the window")
        if 0 <= texture < options.min_texture:
            reasons.append(f"texture {texture:.4f} < {options.min_texture:.4f} of the window")
        accepted = not reasons and score >= min_dice and coverage >= options.min_coverage
        return Verdict(accepted, score, coverage, false_positive, change, "; ".join(reasons), predicted, texture=texture)


def labelled_elsewhere(label: NdarrayOrTensor | None, mask: NdarrayOrTensor, value: LabelValue) -> Tensor | None:
    """(1, H, W[, D]) bool: pixels outside the mask where the label of an edited image is ``value``, so the findings before the edit.

    None without a label on the mask's grid, for an erasing edit (``value`` 0), and where the label inside the mask is not ``value``: then
    the edit did not paint it there, and ``value`` may be the class of an organ.

    Args:
        label: (1, H, W[, D]) class ids after the edit.
        mask: (1, H, W[, D]), non-zero where the edit should be.
        value: class id that the edit paints, or several.

    Raises:
        GridMismatchError: the label has several channels.
    """
    shape = tuple(getattr(label, "shape", ()))
    if label is None or value == 0 or shape[1:] != tuple(mask.shape[1:]):
        return None
    check_grid("label", label, mask)
    is_value = voxels_of_any(plain(label), class_values(value))
    region = plain(mask).to(is_value.device).ne(0).any(0, keepdim=True)
    return is_value & ~region if bool(is_value[region].all()) else None


def _on_grid(name: str, array: NdarrayOrTensor, volume: Tensor) -> Tensor:
    """An array as a tensor on the volume's device, after a check of its grid."""
    tensor: Tensor = convert_to_tensor(array, track_meta=False)
    check_grid(name, tensor, volume, channels=None)
    return tensor.to(volume.device)


def _change(volume: Tensor, before: Tensor, region: Tensor, window: Window) -> float:
    """Mean absolute difference inside the mask, in the model's range, as a share of the window."""
    inside = region.expand(volume.shape)
    return float((window.to_model(volume[inside]) - window.to_model(before[inside])).abs().mean()) / 2


def _texture(stack: Stack) -> float:
    """Mean absolute difference of neighbours within the slices, both inside the mask without its rim, as share of the window; or -1."""
    steps = []
    for row in stack.indices:
        inside = stack.masks[row, 0] != 0
        deep = ~_grown(~inside, TEXTURE_RIM_PX)
        inside = deep if int(deep.sum()) >= LEAST_DEEP_PX else inside
        picture = stack.window.to_model(stack.slices[row])
        steps.append(picture.diff(dim=1).abs()[:, inside[1:] & inside[:-1]].flatten())
        steps.append(picture.diff(dim=2).abs()[:, inside[:, 1:] & inside[:, :-1]].flatten())
    pooled = torch.cat(steps)
    return float(pooled.mean()) / 2 if len(pooled) else -1.0


def _in_crop(mask: Tensor, roi: Roi, size: int) -> Tensor:
    """(size, size) bool: a mask (1, h, w) in the square, never empty if it has a pixel there."""
    covered = crop(mask.float(), roi, size)[0]
    return covered > min(0.5, 0.5 * float(covered.max()))


def _grown(mask: Tensor, radius: int) -> Tensor:
    """A mask (h, w) bool with a band of ``radius`` pixels around it."""
    return F.max_pool2d(mask[None, None].float(), 2 * radius + 1, 1, radius)[0, 0] > 0 if radius else mask
