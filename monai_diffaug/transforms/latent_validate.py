"""Judge an edit by segmenting it: what was painted must be found again, where it was asked for, or the sample is put back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
from monai.transforms.transform import MapTransform, RandomizableTransform, Transform
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from monai_diffaug.errors import DroppedSampleError
from monai_diffaug.grids import affine_of, check_grid, check_image
from monai_diffaug.intensity import Window, window_of
from monai_diffaug.labels import paint_label
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.models.validator import load_validator
from monai_diffaug.provenance import DiffAugRecord, record_key
from monai_diffaug.roi import crop, paste, roi_around
from monai_diffaug.seeding import draw_seed, slice_generators
from monai_diffaug.slices import from_slices, slice_plane, to_slices, touched

__all__ = ["LatentValidate", "LatentValidateD", "LatentValidateDict", "LatentValidated", "Verdict"]

logger = logging.getLogger(__name__)

NOISE_PURPOSE = 7  # the stream of seeding.slice_generators that the validator's noise comes from
ON_REJECT = ("original", "retry", "flag", "drop")
ON_EXHAUSTED = ("original", "flag", "drop")
COUNTERS = ("accepted", "rejected", "retried")


def original_key(key: Hashable) -> str:
    """Where the inpainting transform hands on the untouched item of ``key``."""
    return f"{key}_original"


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
    """

    accepted: bool
    score: float
    coverage: float
    false_positive: float
    change: float
    reason: str
    predicted: Tensor


class LatentValidate(Transform):
    """Segment the edited image around the mask and compare: deterministic for a given seed.

    Accepts iff Dice >= ``min_dice``, coverage >= ``min_coverage``, false positives <= ``max_false_positive`` and the change inside
    the mask >= ``min_change``.

    Args:
        model: "tiny" (embedded), a folder, a network (logits) or a callable (probabilities), see ``load_validator``.
        min_dice: least Dice of prediction and mask (DiffAug's neighbours in the literature: 0.7 to 0.8).
        min_coverage: least share of the mask that is found.
        max_false_positive: most predicted area outside the mask, relative to the mask's area, within the dilated box.
        box_margin: how far that box reaches beyond the mask's bounding box, relative to the box's sides.
        rim: width of the band around the mask in which a prediction is no false positive, relative to the crop's side: no
            segmenter agrees with an outline to the pixel, and a lesion of 60 px grown by one pixel has 7 % more area.
        min_change: least mean absolute change inside the mask, relative to the window's width; needs the original.
        window: intensities the model sees, in the image's unit; None takes percentiles of the original (or the image).
        plane: "axial", "coronal" or "sagittal", found in the affine.
        context: side of the crop relative to the mask's longer side.
        min_side: smallest crop in pixels of the slice.
        size_px: side the crops are resampled to, for a model that does not say which it wants.
        batch_size: crops segmented at once.
        device: where the model runs; None means where the image is.
        dtype: of the spec; the embedded model's step runs in float32 always.

    Raises:
        ValueError: a threshold is outside its range.
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(
        self,
        model: Any = "tiny",
        min_dice: float = 0.7,
        *,
        min_coverage: float = 0.7,
        max_false_positive: float = 0.05,
        box_margin: float = 0.2,
        rim: float = 0.03,
        min_change: float = 0.01,
        window: tuple[float, float] | None = None,
        plane: str = "axial",
        context: float = 2.0,
        min_side: int = 32,
        size_px: int = 128,
        batch_size: int = 8,
        device: torch.device | str | None = None,
        dtype: str = "float32",
    ) -> None:
        for name, value in (("min_dice", min_dice), ("min_coverage", min_coverage), ("min_change", min_change)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        for name, value in (("max_false_positive", max_false_positive), ("box_margin", box_margin), ("rim", rim)):
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("size_px", size_px, 8),
            ("min_side", min_side, 1),
            ("context", context, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        self.spec = spec_of("validator", model, dtype)
        self.min_dice, self.min_coverage = min_dice, min_coverage
        self.max_false_positive, self.box_margin, self.rim = max_false_positive, box_margin, rim
        self.min_change = min_change
        self.window = window
        self.plane = plane
        self.context, self.min_side, self.size_px = context, min_side, size_px
        self.batch_size = batch_size
        self.device = None if device is None else str(device)

    def __call__(
        self,
        image: NdarrayOrTensor,
        mask: NdarrayOrTensor,
        original: NdarrayOrTensor | None = None,
        *,
        seed: int = 0,
        min_dice: float | None = None,
    ) -> Verdict:
        """Judge an edit.

        Args:
            image: the edited (C, H, W[, D]), C = 1 or 3, any unit.
            mask: (1, H, W[, D]) on the same grid; non-zero where the edit was asked for.
            original: the image before the edit; without it the change is not judged.
            seed: of the model's noise, in [0, MAX_SEED]: same seed, same verdict.
            min_dice: instead of the instance's.

        Raises:
            GridMismatchError: mask or original on another grid.
            ValueError: the image is not (1 or 3, H, W[, D]).
        """
        volume = convert_to_tensor(image, track_meta=False)
        check_image(volume)
        wanted = self._on_grid("mask", mask, volume).ne(0).any(0, keepdim=True)
        before = None if original is None else self._on_grid("original", original, volume)
        if not wanted.any():
            return Verdict(False, 0.0, 0.0, 0.0, -1.0, "the mask is empty", wanted)
        affine = affine_of(image)
        plane = slice_plane(affine, self.plane, volume.ndim - 1)
        window = window_of(volume if before is None else before, self.window)
        change = -1.0 if before is None else self._change(volume, before, wanted, window)
        counts, predicted = self._counts(to_slices(volume, plane), to_slices(wanted, plane), window, seed)
        return self._verdict(counts, change, from_slices(predicted, plane), self.min_dice if min_dice is None else min_dice)

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
    def _counts(self, slices: Tensor, masks: Tensor, window: Window, seed: int) -> tuple[Tensor, Tensor]:
        """(4,) areas in pixels of the slices - mask, prediction, both, false positives - and the prediction (S, 1, h, w) bool."""
        device = torch.device(self.device) if self.device else slices.device
        validator = shared_model(self.spec, device, load_validator)
        size = validator.size_px or self.size_px
        indices = touched(masks)
        predicted = torch.zeros_like(masks)
        counts = torch.zeros(4, dtype=torch.float64)
        for start in range(0, len(indices), self.batch_size):
            chunk = indices[start : start + self.batch_size]
            rois = [roi_around(masks[i, 0], size, self.context, self.min_side) for i in chunk]
            crops = [crop(window.to_model(slices[i]), roi, size) for i, roi in zip(chunk, rois, strict=True)]
            images = torch.stack(crops).clamp(-1, 1).expand(-1, 3, -1, -1)
            probabilities = validator.predict(images, slice_generators(seed, chunk, NOISE_PURPOSE)).to(slices.device)
            for index, roi, probability in zip(chunk, rois, probabilities, strict=True):
                target = crop(masks[index].float(), roi, size)[0]
                target = target > min(0.5, 0.5 * float(target.max()))
                found = probability[0] > 0.5
                box = self._dilated_box(target)
                allowed = _grown(target, round(self.rim * size))
                areas = torch.stack([target.sum(), found.sum(), (found & target).sum(), (found & box & ~allowed).sum()])
                counts += areas.double().cpu() * (roi.side / size) ** 2
                predicted[index] = paste(masks[index].float() * 0, probability * box, roi) > 0.5
        return counts, predicted

    def _dilated_box(self, target: Tensor) -> Tensor:
        """(size, size) bool: the bounding box of a mask, enlarged by ``box_margin`` of its sides."""
        box = torch.zeros_like(target)
        rows, columns = torch.nonzero(target.any(1)).flatten(), torch.nonzero(target.any(0)).flatten()
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        y, x = round(self.box_margin * (bottom - top)), round(self.box_margin * (right - left))
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
        if found and coverage < self.min_coverage:
            reasons.append(f"coverage {coverage:.2f} < {self.min_coverage:.2f}")
        if false_positive > self.max_false_positive:
            reasons.append(f"false positives {false_positive:.2f} > {self.max_false_positive:.2f} of the mask")
        if 0 <= change < self.min_change:
            reasons.append(f"change {change:.3f} < {self.min_change:.3f} of the window")
        accepted = not reasons and score >= min_dice and coverage >= self.min_coverage
        return Verdict(accepted, score, coverage, false_positive, change, "; ".join(reasons), predicted)


def _grown(mask: Tensor, radius: int) -> Tensor:
    """A mask (h, w) bool with a band of ``radius`` pixels around it."""
    return F.max_pool2d(mask[None, None].float(), 2 * radius + 1, 1, radius)[0, 0] > 0 if radius else mask


class LatentValidated(RandomizableTransform, MapTransform):
    """Fill each edit's record with a verdict, and put rejected samples back; samples without an edit pass through untouched.

    The images of one sample share mask and label, so they share the verdict: one that is rejected rejects all. The items
    ``*_original`` that ``DiffusionLocalInpaintd(keep_original=True)`` hands on are always removed.

    Args:
        keys: edited images, each (C, H, W[, D]) with its record ``{key}_diffaug``.
        mask_key: where the edit was asked for.
        label_key: label to restore with the image; None when there is none.
        label_value: value of the finding in the label, for ``refine_label``.
        model: source of the validator, see ``load_validator``.
        validator: a ready ``LatentValidate``, or a network or callable to use instead of ``model``.
        inpaint: a ``DiffusionLocalInpaintd`` that is run from here, with seeds drawn here; then nothing has to stand before.
        on_reject: "original": image, label and mask as they were before the edit; "retry": another seed, up to ``max_tries``, then
            as ``on_exhausted`` says (needs ``inpaint``); "flag": keep the edit, the record says accepted=False; "drop": raise
            DroppedSampleError.
        max_tries: candidates at most with "retry"; the first accepted is taken.
        on_exhausted: what becomes of a sample none of whose candidates was accepted: "original", "flag" or "drop" as above, for the
            best of them (by its Dice), whose score and reason the record holds in any case.
        min_dice, min_coverage, max_false_positive, box_margin, rim, min_change, window, plane, context, min_side, size_px,
            batch_size, device, dtype: as in ``LatentValidate``; not used when ``validator`` is one.
        dynamic: raise the least Dice to the ``dynamic_quantile`` of the last ``dynamic_length`` scores, if that is higher.
        refine_label: the label of an accepted edit is what the validator found in place of the whole mask.
        prob: chance of validating; with ``inpaint``, of editing at all (then multiplied by the inpainting's own chance).
        allow_missing_keys: skip images that are not there.

    Attributes:
        statistics: how many samples were "accepted" and "rejected", and how many further candidates were "retried". Plain
            ints: they go along with deepcopy and pickle; worker processes count their own.

    Raises:
        ValueError: an option is unknown, out of range or lacks its partner.
    """

    backend = LatentValidate.backend

    def __init__(
        self,
        keys: KeysCollection,
        *,
        mask_key: str = "mask",
        label_key: str | None = None,
        label_value: int = 1,
        model: Any = "tiny",
        validator: LatentValidate | Callable[[Tensor], Tensor] | None = None,
        inpaint: Callable[[Mapping[Hashable, Any]], dict[Hashable, Any]] | None = None,
        on_reject: str = "original",
        max_tries: int = 3,
        on_exhausted: str = "original",
        min_dice: float = 0.7,
        min_coverage: float = 0.7,
        max_false_positive: float = 0.05,
        box_margin: float = 0.2,
        rim: float = 0.03,
        min_change: float = 0.01,
        dynamic: bool = False,
        dynamic_quantile: float = 0.3,
        dynamic_length: int = 256,
        refine_label: bool = False,
        window: tuple[float, float] | None = None,
        plane: str = "axial",
        context: float = 2.0,
        min_side: int = 32,
        size_px: int = 128,
        batch_size: int = 8,
        device: torch.device | str | None = None,
        dtype: str = "float32",
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if on_reject not in ON_REJECT:
            raise ValueError(f"on_reject must be one of {', '.join(ON_REJECT)}, got {on_reject!r}")
        if on_reject == "retry" and inpaint is None:
            raise ValueError("on_reject='retry' has to inpaint again: pass inpaint=DiffusionLocalInpaintd(...)")
        if on_exhausted not in ON_EXHAUSTED:
            raise ValueError(f"on_exhausted must be one of {', '.join(ON_EXHAUSTED)}, got {on_exhausted!r}")
        if max_tries < 1:
            raise ValueError(f"max_tries must be 1 or more, got {max_tries}")
        if not 0 <= dynamic_quantile <= 1 or dynamic_length < 1:
            raise ValueError(
                f"dynamic_quantile must lie in [0, 1] and dynamic_length be positive, got {dynamic_quantile}, {dynamic_length}"
            )
        if refine_label and label_key is None:
            raise ValueError("refine_label=True needs label_key (and label_value)")
        self.mask_key, self.label_key, self.label_value = mask_key, label_key, label_value
        self.inpaint = inpaint
        self.on_reject = on_reject
        self.max_tries = max_tries
        self.on_exhausted = on_exhausted
        self.dynamic, self.dynamic_quantile, self.dynamic_length = dynamic, dynamic_quantile, dynamic_length
        self.refine_label = refine_label
        self.validator = (
            validator
            if isinstance(validator, LatentValidate)
            else LatentValidate(
                model if validator is None else validator,
                min_dice,
                min_coverage=min_coverage,
                max_false_positive=max_false_positive,
                box_margin=box_margin,
                rim=rim,
                min_change=min_change,
                window=window,
                plane=plane,
                context=context,
                min_side=min_side,
                size_px=size_px,
                batch_size=batch_size,
                device=device,
                dtype=dtype,
            )
        )
        self.seeds = [0] * max_tries
        self.scores: list[float] = []
        self.statistics: dict[str, int] = {}
        self.reset_statistics()

    def reset_statistics(self) -> None:
        """Set all counters to 0 and forget the scores of the dynamic threshold."""
        self.statistics = dict.fromkeys(COUNTERS, 0)
        self.scores = []

    def randomize(self, data: Any = None) -> None:
        """Draw the coin and ``max_tries`` seeds, whatever the data and however many are used."""
        super().randomize(data)
        self.seeds = [draw_seed(self.R) for _ in range(self.max_tries)]

    @property
    def threshold(self) -> float:
        """The least Dice of the next sample: tau = max(min_dice, quantile of the last scores)."""
        if not self.dynamic or not self.scores:
            return self.validator.min_dice
        return max(self.validator.min_dice, float(np.quantile(self.scores, self.dynamic_quantile)))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with its verdict in the records.

        Raises:
            KeyError: a record or the mask is missing.
            ValueError: the originals are needed and were not handed on.
            DroppedSampleError: rejected with ``on_reject="drop"``.
        """
        self.randomize()
        keys = list(self.key_iterator(dict(data)))
        if self.inpaint is not None:
            return self._generate(dict(data), keys)
        sample = dict(data)
        originals = self._take_originals(sample, keys)
        records = {key: self._record(sample, key) for key in keys}
        if not self._do_transform or not any(record.applied for record in records.values()):
            return sample
        self._require_originals(originals, [key for key in keys if records[key].applied])
        verdicts = self._judge(sample, originals, records)
        accepted = all(verdict.accepted for verdict in verdicts.values())
        return self._conclude(sample, originals, records, verdicts, accepted)

    def _generate(self, data: dict[Hashable, Any], keys: list[Hashable]) -> dict[Hashable, Any]:
        """Inpaint and judge until a candidate is accepted or the tries are used up."""
        originals = {key: data[key] for key in (*keys, self.mask_key, self.label_key) if key is not None and key in data}
        if not self._do_transform:
            return {**data, **{record_key(str(key)): DiffAugRecord(reason="not triggered").as_dict() for key in keys}}
        tries = self.max_tries if self.on_reject == "retry" else 1
        best: tuple[float, dict[Hashable, Any], dict[Hashable, DiffAugRecord], dict[Hashable, Verdict]] | None = None
        for attempt in range(tries):
            sample = self._candidate(data, self.seeds[attempt], forced=attempt > 0)
            self._take_originals(sample, keys)
            records = {key: self._record(sample, key) for key in keys}
            if not any(record.applied for record in records.values()):
                if best is None:
                    return sample
                continue  # the edit failed this time (on_error); judge by the others
            self.statistics["retried"] += attempt > 0
            verdicts = self._judge(sample, originals, records)
            for record in records.values():
                record.tries = attempt + 1
            score = min(verdict.score for verdict in verdicts.values())
            if all(verdict.accepted for verdict in verdicts.values()):
                return self._conclude(sample, originals, records, verdicts, accepted=True)
            if best is None or score > best[0]:
                best = (score, sample, records, verdicts)
        if best is None:
            raise RuntimeError("no candidate was judged")  # unreachable: tries >= 1
        _, sample, records, verdicts = best
        for record in records.values():
            record.tries = tries
        return self._conclude(sample, originals, records, verdicts, accepted=False)

    def _candidate(self, data: dict[Hashable, Any], seed: int, forced: bool) -> dict[Hashable, Any]:
        """One run of the inpainting, on a copy of its instance whose random state is fixed by the seed; a retry flips no coin."""
        inpaint: Any = copy(self.inpaint)
        if hasattr(inpaint, "set_random_state"):
            inpaint.set_random_state(seed=seed)
        if forced and hasattr(inpaint, "prob"):
            inpaint.prob = 1.0
        return dict(inpaint(data))

    def _take_originals(self, sample: dict[Hashable, Any], keys: list[Hashable]) -> dict[Hashable, Any]:
        """Remove what ``keep_original=True`` handed on from the sample; returns it under the plain keys."""
        taken = {}
        for key in (*keys, self.mask_key, self.label_key):
            if key is not None and original_key(key) in sample:
                taken[key] = sample.pop(original_key(key))
        return taken

    def _require_originals(self, originals: Mapping[Hashable, Any], keys: list[Hashable]) -> None:
        """The one place that insists on ``keep_original=True``.

        Every edited sample is asked, not just the rejected: a pipeline that cannot put samples back shall fail at its first.
        """
        needed: list[Hashable] = []
        if self.on_reject == "original":
            needed = [*keys, *([self.label_key] if self.label_key is not None else [])]
        elif self.refine_label and self.label_key is not None:
            needed = [self.label_key]
        missing = [original_key(key) for key in needed if key not in originals]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} not in the sample: on_reject='original' and refine_label=True need the items from before the edit; "
                "set keep_original=True on DiffusionLocalInpaintd (and its label_key), or pass it as inpaint= to LatentValidated, or use "
                "on_reject='flag' or 'drop'"
            )

    def _record(self, sample: Mapping[Hashable, Any], key: Hashable) -> DiffAugRecord:
        name = record_key(str(key))
        if name not in sample:
            raise KeyError(f"no record {name!r} in the sample: put DiffusionLocalInpaintd({key!r}, ...) before, or pass it as inpaint=")
        return DiffAugRecord.from_dict(sample[name])

    def _judge(
        self,
        sample: Mapping[Hashable, Any],
        originals: Mapping[Hashable, Any],
        records: Mapping[Hashable, DiffAugRecord],
    ) -> dict[Hashable, Verdict]:
        if self.mask_key not in sample:
            raise KeyError(f"mask_key {self.mask_key!r} is not in the sample, which has {sorted(map(str, sample))}")
        least, mask = self.threshold, sample[self.mask_key]
        verdicts = {}
        for key, record in records.items():
            if record.applied:
                verdicts[key] = self.validator(sample[key], mask, originals.get(key), seed=record.seed, min_dice=least)
        if self.dynamic:
            self.scores = [*self.scores, *(verdict.score for verdict in verdicts.values())][-self.dynamic_length :]
        return verdicts

    def _conclude(
        self,
        sample: dict[Hashable, Any],
        originals: Mapping[Hashable, Any],
        records: dict[Hashable, DiffAugRecord],
        verdicts: Mapping[Hashable, Verdict],
        accepted: bool,
    ) -> dict[Hashable, Any]:
        """Write the records, then keep, refine, restore or drop."""
        self.statistics["accepted" if accepted else "rejected"] += 1
        reasons = "; ".join(verdict.reason for verdict in verdicts.values() if verdict.reason)
        fate = self.on_exhausted if self.on_reject == "retry" else self.on_reject
        restored = not accepted and fate == "original"
        for key, verdict in verdicts.items():
            records[key].score, records[key].accepted = verdict.score, accepted
            records[key].reason = "" if accepted else verdict.reason or reasons
            records[key].applied = not restored
        if not accepted and fate == "drop":
            raise DroppedSampleError(f"sample rejected: {reasons}")
        if restored:
            sample.update(originals)
        elif accepted and self.refine_label:
            sample[self.label_key] = self._refined(originals[self.label_key], verdicts)
        sample.update({record_key(str(key)): record.as_dict() for key, record in records.items()})
        logger.debug("accepted %s: %s", accepted, reasons)
        return sample

    def _refined(self, label: NdarrayOrTensor, verdicts: Mapping[Hashable, Verdict]) -> NdarrayOrTensor:
        """The label before the edit with what all validators agree on."""
        plain = convert_to_tensor(label, track_meta=False)
        found = torch.stack([verdict.predicted for verdict in verdicts.values()]).all(0).to(plain.device)
        painted: NdarrayOrTensor = convert_to_dst_type(paint_label(plain, found, self.label_value), dst=label, dtype=label.dtype)[0]
        return painted


LatentValidateD = LatentValidateDict = LatentValidated
