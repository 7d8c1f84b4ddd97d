"""The dictionary form of ``LatentValidate``: keep accepted edits; retry, put back, flag or drop the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor

from monai_diffaug.data.lesion_bank import LesionBank
from monai_diffaug.edit.contrast import NOT_VISIBLE
from monai_diffaug.edit.options import check_group
from monai_diffaug.edit.record import RECORD_POSTFIX, DiffAugRecord, original_key, record_key
from monai_diffaug.edit.screening import CandidateScreen, Refused
from monai_diffaug.edit.signature import Described
from monai_diffaug.edit.validation_options import Dynamic, Screen, Validator
from monai_diffaug.errors import DroppedSampleError
from monai_diffaug.masks.labels import LabelValue, paint_label
from monai_diffaug.sampling.seeding import draw_seed
from monai_diffaug.transforms.latent_validate import LatentValidate, Verdict, labelled_elsewhere
from monai_diffaug.transforms.lesion_novelty import LesionNovelty, Novelty

__all__ = ["LatentValidateD", "LatentValidateDict", "LatentValidated"]

logger = logging.getLogger(__name__)

ON_REJECT = ("original", "retry", "flag", "drop")
COUNTERS = ("accepted", "rejected", "retried")
SCREENED = "screened"  # an additional counter with a screen


class LatentValidated(RandomizableTransform, MapTransform, Described):
    """Write a verdict into the record of each edit, and put rejected samples back; samples without an edit pass through unchanged.

    The images of one sample share mask and label, so they share the verdict: if one is rejected, all are. The items ``*_original`` of
    ``DiffusionLocalInpaintd(keep_original=True)`` are always removed.

    With ``label_key``, a finding that the label holds outside the mask counts neither as a hit nor as a false positive, see
    ``LatentValidate``.

    Count edits by ``applied``. Samples that were not edited (not triggered, empty mask, error) keep ``accepted=True`` and appear in no
    statistic.

    A validator stands directly after its edit, or holds it as ``inpaint``. Several edits of one image need one validator each: it judges
    the edit whose record and mask it finds, and puts back image, label and mask as they were before that edit. Give each edit its own
    ``record_postfix``, else only the last record stays.

    Args:
        keys: edited images, each (C, H, W[, D]) with its record ``{key}_diffaug``.
        mask_key: region of the edit.
        label_key: label that is restored with the image, and that shows pre-existing findings; None when there is none.
        label_value: class id that the edit paints (or several), of pre-existing findings and for ``refine_label``. If the label inside the
            mask is another value, no finding counts as pre-existing.
        model: the validator: "tiny" (embedded), a folder, a network (logits) or a callable (probabilities), see ``load_validator``; or a
            ready ``LatentValidate``, whose thresholds, crops, window, plane and device then count.
        inpaint: a ``DiffusionLocalInpaintd`` that is run from here, with seeds drawn here; then no edit has to stand before.
        on_reject: "original": image, label and mask as they were before the edit; "retry": another seed, up to ``max_tries``, then
            as ``Validator.on_exhausted`` says (needs ``inpaint``); "flag": keep the edit with accepted=False in the record; "drop": raise
            DroppedSampleError.
        max_tries: largest number of candidates with "retry"; the first accepted one is taken.
        min_dice, window, plane, device: as in ``LatentValidate``.
        validator: thresholds, crops and the fate of rejected samples, see ``Validator``; None takes those of a ready
            ``LatentValidate``, else the defaults.
        screen: a ``Screen`` or its source, which rejects candidates by their latents before they are decoded (needs ``inpaint``, a
            ``DiffusionLocalInpaintd``); None decodes every candidate. A rejected candidate counts as a try; one that passes is decoded
            and judged as without a screen.
        dynamic: a threshold that rises with the scores, see ``Dynamic``; None keeps ``min_dice``.
        novelty: the training lesions, a ``LesionBank`` or its file, or a ready ``LesionNovelty``: an edit that is closer to one of them
            than real lesions are to each other is rejected, and the reason names the lesion. Only grey values inside the mask count; the
            limits of the comparison are listed in ``monai_diffaug.data.lesion_bank``.
        prob: probability of validating; with ``inpaint``, of editing at all (multiplied by the probability of ``inpaint``).
        allow_missing_keys: skip images that a sample lacks.

    Attributes:
        statistics: number of samples "accepted" and "rejected", of further candidates "retried" and, with a screen, of candidates
            "screened" (rejected before decoding). Plain ints that are copied by deepcopy and pickle; worker processes count on their own.

    Raises:
        TypeError: ``validator`` or ``dynamic`` is of another class.
        ValueError: an option is unknown, out of range or lacks its partner.

    >>> import torch
    >>> from monai_diffaug import DiffusionLocalInpaintd
    >>> sample = {"image": torch.rand(1, 64, 64), "mask": torch.ones(1, 64, 64), "prompt": "CT of liver, cyst"}
    >>> edit = LatentValidated("image", inpaint=DiffusionLocalInpaintd("image", num_inference_steps=1), on_reject="retry", max_tries=2)
    >>> record = edit.set_random_state(seed=0)(sample)["image_diffaug"]
    >>> record["accepted"], record["tries"], edit.statistics["rejected"]
    (False, 2, 1)
    """

    backend = LatentValidate.backend

    def __init__(
        self,
        keys: KeysCollection,
        *,
        mask_key: str = "mask",
        label_key: str | None = None,
        label_value: LabelValue = 1,
        model: Any = "tiny",
        inpaint: Callable[[Mapping[Hashable, Any]], dict[Hashable, Any]] | None = None,
        on_reject: str = "original",
        max_tries: int = 3,
        min_dice: float = 0.7,
        validator: Validator | None = None,
        screen: Any = None,
        dynamic: Dynamic | None = None,
        novelty: LesionNovelty | LesionBank | str | Path | None = None,
        window: tuple[float, float] | None = None,
        plane: str = "axial",
        device: torch.device | str | None = None,
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if on_reject not in ON_REJECT:
            raise ValueError(f"on_reject must be one of {', '.join(ON_REJECT)}, got {on_reject!r}")
        if on_reject == "retry" and inpaint is None:
            raise ValueError("on_reject='retry' has to inpaint again: pass inpaint=DiffusionLocalInpaintd(...)")
        unjudged = sorted(set(map(str, getattr(inpaint, "keys", ()))) - set(map(str, self.keys)))
        if unjudged:
            raise ValueError(
                f"inpaint= also edits {', '.join(unjudged)}, which would keep the edit when it is rejected; name all its keys in keys="
            )
        if screen is not None and not all(hasattr(inpaint, step) for step in ("denoise", "finish", "leave")):
            raise ValueError("screen= looks before the decoding: pass inpaint=DiffusionLocalInpaintd(...)")
        if max_tries < 1:
            raise ValueError(f"max_tries must be 1 or more, got {max_tries}")
        if validator is None:
            validator = model.options if isinstance(model, LatentValidate) else Validator()
        check_group("validator", validator, Validator)
        check_group("dynamic", dynamic, Dynamic, type(None))
        if validator.refine_label and label_key is None:
            raise ValueError("refine_label=True needs label_key (and label_value)")
        if validator.refine_label and isinstance(label_value, Sequence):
            raise ValueError(f"refine_label=True paints one class, got label_value={label_value}")
        self.mask_key, self.label_key, self.label_value = mask_key, label_key, label_value
        self.inpaint = inpaint
        self.record_type: type[DiffAugRecord] = getattr(inpaint, "record_type", DiffAugRecord)
        self.record_postfix = str(validator.record_postfix or getattr(inpaint, "record_postfix", RECORD_POSTFIX))
        self.screen = None if screen is None else CandidateScreen(screen if isinstance(screen, Screen) else Screen(screen))
        self.novelty = LesionNovelty(novelty) if isinstance(novelty, (LesionBank, str, Path)) else novelty
        self.on_reject = on_reject
        self.max_tries = max_tries
        self.options = validator
        self.dynamic = dynamic
        self.validator = model
        if not isinstance(model, LatentValidate):
            self.validator = LatentValidate(model, min_dice, options=validator, window=window, plane=plane, device=device)
        self.seeds = [0] * max_tries
        self.scores: list[float] = []
        self.statistics: dict[str, int] = {}
        self.reset_statistics()

    def reset_statistics(self) -> None:
        """Set all counters to 0 and forget the scores of the dynamic threshold."""
        self.statistics = dict.fromkeys(COUNTERS if self.screen is None else (*COUNTERS, SCREENED), 0)
        self.scores = []

    def record_key(self, key: Hashable) -> str:
        """Key of the record of image ``key``."""
        return record_key(str(key), self.record_postfix)

    def randomize(self, data: Any = None) -> None:
        """Draw the trigger and ``max_tries`` seeds, whatever the data and however many are used."""
        super().randomize(data)
        self.seeds = [draw_seed(self.R) for _ in range(self.max_tries)]

    @property
    def threshold(self) -> float:
        """Least Dice of the next sample: max(min_dice, quantile of the last scores)."""
        if self.dynamic is None or not self.scores:
            return self.validator.min_dice
        return max(self.validator.min_dice, float(np.quantile(self.scores, self.dynamic.quantile)))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with its verdict in the records.

        Raises:
            KeyError: a record or the mask is missing.
            ValueError: the originals are needed and were not passed on.
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
        self._require_originals(sample, originals, [key for key in keys if records[key].applied])
        verdicts = self._judge(sample, originals, records)
        accepted = all(verdict.accepted for verdict in verdicts.values())
        return self._conclude(sample, originals, records, verdicts, accepted)

    def _generate(self, data: dict[Hashable, Any], keys: list[Hashable]) -> dict[Hashable, Any]:
        """Inpaint and judge until a candidate is accepted or the tries are used up."""
        originals = {key: data[key] for key in (*keys, self.mask_key, self.label_key) if key is not None and key in data}
        if not self._do_transform:
            self._take_originals(data, keys)  # of an edit before this transform
            if getattr(self.inpaint, "writes_mask", False):  # it writes the same keys when it is not triggered
                left = self._untriggered(data)
                self._take_originals(left, keys)
                return left
            return {**data, **{self.record_key(key): self.record_type(reason="not triggered").as_dict() for key in keys}}
        tries = self.max_tries if self.on_reject == "retry" else 1
        best: tuple[tuple[bool, float], dict[Hashable, Any], dict[Hashable, DiffAugRecord], dict[Hashable, Verdict]] | None = None
        refused: Refused | None = None
        for attempt in range(tries):
            sample = self._candidate(data, self.seeds[attempt], forced=attempt > 0)
            if isinstance(sample, Refused):
                self.statistics[SCREENED] += 1
                self.statistics["retried"] += attempt > 0
                refused = sample if refused is None or sample.score > refused.score else refused
                continue
            self._take_originals(sample, keys)
            records = {key: self._record(sample, key) for key in keys}
            if not any(record.applied for record in records.values()):
                if any(record.reason.startswith(NOT_VISIBLE) for record in records.values()) and attempt + 1 < tries:
                    continue  # another seed may be seen
                if best is None and refused is None:
                    for key, record in records.items() if attempt else ():
                        record.tries = attempt + 1
                        sample[self.record_key(key)] = {**sample[self.record_key(key)], **record.as_dict()}
                    return sample
                continue  # the edit failed this time (on_error); judge by the others
            self.statistics["retried"] += attempt > 0
            verdicts = self._judge(sample, originals, records)
            for record in records.values():
                record.tries = attempt + 1
            rank = (not any(verdict.copied for verdict in verdicts.values()), min(verdict.score for verdict in verdicts.values()))
            if all(verdict.accepted for verdict in verdicts.values()):
                return self._conclude(sample, originals, records, verdicts, accepted=True)
            if best is None or rank > best[0]:
                best = (rank, sample, records, verdicts)
        if best is None and refused is not None:
            return self._conclude_refused(refused, originals, keys, tries)
        if best is None:
            raise RuntimeError("no candidate was judged")  # unreachable: tries >= 1
        _, sample, records, verdicts = best
        for record in records.values():
            record.tries = tries
        return self._conclude(sample, originals, records, verdicts, accepted=False)

    def _conclude_refused(
        self, refused: Refused, originals: Mapping[Hashable, Any], keys: list[Hashable], tries: int
    ) -> dict[Hashable, Any]:
        """Conclude a sample whose candidates were all rejected by the screen: the best is decoded only if it is kept."""
        fate = self.options.on_exhausted if self.on_reject == "retry" else self.on_reject
        sample = refused.decode() if fate == "flag" else refused.leave()
        self._take_originals(sample, keys)
        records = {key: self._record(sample, key) for key in keys}
        for record in records.values():
            record.tries = tries
        verdict = Verdict(False, refused.score, 0.0, 0.0, -1.0, refused.reason, torch.zeros(0, dtype=torch.bool))
        judged = [key for key, record in records.items() if record.applied or fate != "flag"]
        return self._conclude(sample, originals, records, dict.fromkeys(judged, verdict), accepted=False)

    def _untriggered(self, data: dict[Hashable, Any]) -> dict[Hashable, Any]:
        inpaint: Any = self.inpaint
        return dict(inpaint.edit(data, seed=self.seeds[0], triggered=False))

    def _candidate(self, data: dict[Hashable, Any], seed: int, forced: bool) -> dict[Hashable, Any] | Refused:
        """One run of a copy of ``inpaint`` whose random state is fixed by the seed; a retry is always triggered."""
        inpaint: Any = copy(self.inpaint)
        if hasattr(inpaint, "set_random_state"):
            inpaint.set_random_state(seed=seed)
        if forced and hasattr(inpaint, "prob"):
            inpaint.prob = 1.0
        return dict(inpaint(data)) if self.screen is None else self.screen.run(inpaint, data)

    def _take_originals(self, sample: dict[Hashable, Any], keys: list[Hashable]) -> dict[Hashable, Any]:
        """Remove the items of ``keep_original=True`` from the sample; returns them under the plain keys."""
        originals = {}
        for key in (*keys, self.mask_key, self.label_key):
            if key is not None and original_key(key) in sample:
                originals[key] = sample.pop(original_key(key))
        others = [key for key in sample if original_key(key) in sample and self.record_key(key) in sample]
        if others:
            raise ValueError(
                f"the edit before LatentValidated also changed {', '.join(map(str, others))}, which shares mask and label with "
                f"{', '.join(map(str, keys))} and could not be put back with them; name all of them in keys="
            )
        return originals

    def _require_originals(self, sample: Mapping[Hashable, Any], originals: Mapping[Hashable, Any], keys: list[Hashable]) -> None:
        """Raise ValueError if an original is missing for an item of the sample (a sample may lack the label).

        Every edited sample is checked, not only rejected ones: a pipeline that cannot put samples back should fail at the first.
        """
        needed = [*keys, self.label_key] if self.on_reject == "original" else [self.label_key] if self.options.refine_label else []
        missing = [original_key(key) for key in needed if key is not None and key in sample and key not in originals]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} not in the sample: on_reject='original' and refine_label=True need the items from before the edit; "
                "set keep_original=True on DiffusionLocalInpaintd (and its label_key), or pass it as inpaint= to LatentValidated, or use "
                "on_reject='flag' or 'drop'"
            )

    def _record(self, sample: Mapping[Hashable, Any], key: Hashable) -> DiffAugRecord:
        name = self.record_key(key)
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
        known = None if self.label_key is None else labelled_elsewhere(sample.get(self.label_key), mask, self.label_value)
        verdicts = {}
        for key, record in records.items():
            if record.applied:
                options: dict[str, Any] = {"known": known, "seed": record.seed, "min_dice": least, "prompt": record.prompt}
                verdict = self.validator(sample[key], mask, originals.get(key), **options)
                verdicts[key] = verdict if self.novelty is None else verdict.unless_copied(self._novelty_of(sample, key))
        if self.dynamic is not None:
            self.scores = [*self.scores, *(verdict.score for verdict in verdicts.values())][-self.dynamic.length :]
        return verdicts

    def _novelty_of(self, sample: Mapping[Hashable, Any], key: Hashable) -> Novelty:
        """The guard's verdict on an image; of a transplant the record names the donor's group."""
        if self.novelty is None:
            raise RuntimeError("no guard")  # unreachable
        donor_group = str(sample[self.record_key(key)].get("donor_group", ""))
        return self.novelty(sample[key], sample[self.mask_key], donor_group=donor_group)

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
        fate = self.options.on_exhausted if self.on_reject == "retry" else self.on_reject
        restored = not accepted and fate == "original"
        for key, verdict in verdicts.items():
            records[key].score, records[key].accepted = verdict.score, accepted
            records[key].reason = "" if accepted else verdict.reason or reasons
            records[key].applied = not restored
        if not accepted and fate == "drop":
            raise DroppedSampleError(f"sample rejected: {reasons}")
        if restored:
            sample.update(originals)
            if self.inpaint is not None and self.mask_key not in originals and self.mask_key in sample:
                sample[self.mask_key] = sample[self.mask_key] * 0  # the edit wrote it
        elif accepted and self.options.refine_label and self.label_key in originals:
            sample[self.label_key] = self._refined(originals[self.label_key], verdicts)
        sample.update({name: {**sample[name], **record.as_dict()} for key, record in records.items() for name in (self.record_key(key),)})
        logger.debug("accepted %s: %s", accepted, reasons)
        return sample

    def _refined(self, label: NdarrayOrTensor, verdicts: Mapping[Hashable, Verdict]) -> NdarrayOrTensor:
        """The label before the edit, with the prediction that the verdicts of all images share."""
        before = convert_to_tensor(label, track_meta=False)
        prediction = torch.stack([verdict.predicted for verdict in verdicts.values()]).all(0).to(before.device)
        refined: NdarrayOrTensor = convert_to_dst_type(paint_label(before, prediction, self.label_value), dst=label, dtype=label.dtype)[0]
        return refined


LatentValidateD = LatentValidateDict = LatentValidated
