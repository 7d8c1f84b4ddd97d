"""The dictionary form of ``LatentValidate``: keep the edits that it accepts; retry, put back, flag or drop the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor

from monai_diffaug.data.lesion_bank import LesionBank
from monai_diffaug.edit.options import check_group
from monai_diffaug.edit.record import RECORD_POSTFIX, DiffAugRecord, original_key, record_key
from monai_diffaug.edit.screening import CandidateScreen, Refused
from monai_diffaug.edit.signature import Described
from monai_diffaug.edit.validation_options import Dynamic, Screen, Validator
from monai_diffaug.errors import DroppedSampleError
from monai_diffaug.masks.labels import paint_label
from monai_diffaug.sampling.seeding import draw_seed
from monai_diffaug.transforms.latent_validate import LatentValidate, Verdict, labelled_elsewhere
from monai_diffaug.transforms.lesion_novelty import LesionNovelty

__all__ = ["LatentValidateD", "LatentValidateDict", "LatentValidated"]

logger = logging.getLogger(__name__)

ON_REJECT = ("original", "retry", "flag", "drop")
COUNTERS = ("accepted", "rejected", "retried")
SCREENED = "screened"  # a further counter, with a screen


class LatentValidated(RandomizableTransform, MapTransform, Described):
    """Fill each edit's record with a verdict, and put rejected samples back; samples without an edit pass through untouched.

    The images of one sample share mask and label, so they share the verdict: one that is rejected rejects all. The items
    ``*_original`` that ``DiffusionLocalInpaintd(keep_original=True)`` hands on are always removed.

    With ``label_key``, a finding that the label holds outside the mask counts neither as found nor as false, see ``LatentValidate``.

    Who counts edits counts ``applied``: a sample without one (by its coin, an empty mask, a failure) keeps accepted=True, as nobody has
    refused it, and is in no ``statistics``.

    A validator stands directly behind its edit, or holds it as ``inpaint``. Of several edits of one image each needs its own: it judges
    the edit whose record and mask it finds, and puts back image, label and mask as they were before that one.
    With a ``record_postfix`` of its own each keeps its record, else the last one's stays.

    Args:
        keys: edited images, each (C, H, W[, D]) with its record ``{key}_diffaug``.
        mask_key: where the edit was asked for.
        label_key: label to restore with the image, and where findings are that are there besides; None when there is none.
        label_value: value that the edit paints into the label: of findings that are there besides, and for ``refine_label``. Where the
            label inside the mask holds another, nothing counts as being there besides.
        model: the validator: "tiny" (embedded), a folder, a network (logits) or a callable (probabilities), see ``load_validator``; or a
            ready ``LatentValidate``, whose thresholds, crops, window, plane and device then count.
        inpaint: a ``DiffusionLocalInpaintd`` that is run from here, with seeds drawn here; then nothing has to stand before.
        screen: a ``Screen`` or its source, which refuses candidates by their latents before they are decoded (needs ``inpaint``, a
            ``DiffusionLocalInpaintd``); None decodes every candidate. A refused candidate counts as a try and is rejected without
            decoding; one that passes is decoded and judged as without a screen.
        novelty: the training lesions, a ``LesionBank`` or its file, or a ready ``LesionNovelty``: an edit that is nearer to one of them
            than real lesions are to each other is refused like any other, and its reason names the lesion. It looks at grey values
            inside the mask; what it cannot see is said in ``monai_diffaug.data.lesion_bank``.
        on_reject: "original": image, label and mask as they were before the edit; "retry": another seed, up to ``max_tries``, then
            as ``Validator.on_exhausted`` says (needs ``inpaint``); "flag": keep the edit, the record says accepted=False; "drop": raise
            DroppedSampleError.
        max_tries: candidates at most with "retry"; the first accepted is taken.
        min_dice, window, plane, device: as in ``LatentValidate``.
        validator: thresholds, crops and what happens to rejected samples, see ``Validator``; None takes those of a ready
            ``LatentValidate``, else the defaults.
        dynamic: a threshold that rises with the scores, see ``Dynamic``; None keeps ``min_dice``.
        prob: chance of validating; with ``inpaint``, of editing at all (then multiplied by the inpainting's own chance).
        allow_missing_keys: skip images that are not there.

    Attributes:
        statistics: how many samples were "accepted" and "rejected", how many further candidates were "retried" and, with a screen,
            how many candidates were "screened": refused before they were decoded. Plain ints: they go along with deepcopy and
            pickle; worker processes count their own.

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
        self.mask_key, self.label_key, self.label_value = mask_key, label_key, label_value
        self.inpaint = inpaint
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
        """Where the record of the edit of image ``key`` is looked for."""
        return record_key(str(key), self.record_postfix)

    def randomize(self, data: Any = None) -> None:
        """Draw the coin and ``max_tries`` seeds, whatever the data and however many are used."""
        super().randomize(data)
        self.seeds = [draw_seed(self.R) for _ in range(self.max_tries)]

    @property
    def threshold(self) -> float:
        """The least Dice of the next sample: tau = max(min_dice, quantile of the last scores)."""
        if self.dynamic is None or not self.scores:
            return self.validator.min_dice
        return max(self.validator.min_dice, float(np.quantile(self.scores, self.dynamic.quantile)))

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
        self._require_originals(sample, originals, [key for key in keys if records[key].applied])
        verdicts = self._judge(sample, originals, records)
        accepted = all(verdict.accepted for verdict in verdicts.values())
        return self._conclude(sample, originals, records, verdicts, accepted)

    def _generate(self, data: dict[Hashable, Any], keys: list[Hashable]) -> dict[Hashable, Any]:
        """Inpaint and judge until a candidate is accepted or the tries are used up."""
        originals = {key: data[key] for key in (*keys, self.mask_key, self.label_key) if key is not None and key in data}
        if not self._do_transform:
            self._take_originals(data, keys)  # of an edit that stands before
            return {**data, **{self.record_key(key): DiffAugRecord(reason="not triggered").as_dict() for key in keys}}
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
                if best is None and refused is None:
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
            return self._conclude_unseen(refused, originals, keys, tries)
        if best is None:
            raise RuntimeError("no candidate was judged")  # unreachable: tries >= 1
        _, sample, records, verdicts = best
        for record in records.values():
            record.tries = tries
        return self._conclude(sample, originals, records, verdicts, accepted=False)

    def _conclude_unseen(
        self, refused: Refused, originals: Mapping[Hashable, Any], keys: list[Hashable], tries: int
    ) -> dict[Hashable, Any]:
        """The end of a sample all of whose candidates the screen refused: the best of them is decoded if it is to be kept."""
        fate = self.options.on_exhausted if self.on_reject == "retry" else self.on_reject
        sample = refused.decode() if fate == "flag" else refused.leave()
        self._take_originals(sample, keys)
        records = {key: self._record(sample, key) for key in keys}
        for record in records.values():
            record.tries = tries
        unseen = Verdict(False, refused.score, 0.0, 0.0, -1.0, refused.reason, torch.zeros(0, dtype=torch.bool))
        judged = [key for key, record in records.items() if record.applied or fate != "flag"]
        return self._conclude(sample, originals, records, dict.fromkeys(judged, unseen), accepted=False)

    def _candidate(self, data: dict[Hashable, Any], seed: int, forced: bool) -> dict[Hashable, Any] | Refused:
        """One run of the inpainting, on a copy of its instance whose random state is fixed by the seed; a retry flips no coin."""
        inpaint: Any = copy(self.inpaint)
        if hasattr(inpaint, "set_random_state"):
            inpaint.set_random_state(seed=seed)
        if forced and hasattr(inpaint, "prob"):
            inpaint.prob = 1.0
        return dict(inpaint(data)) if self.screen is None else self.screen.run(inpaint, data)

    def _take_originals(self, sample: dict[Hashable, Any], keys: list[Hashable]) -> dict[Hashable, Any]:
        """Remove what ``keep_original=True`` handed on from the sample; returns it under the plain keys."""
        taken = {}
        for key in (*keys, self.mask_key, self.label_key):
            if key is not None and original_key(key) in sample:
                taken[key] = sample.pop(original_key(key))
        return taken

    def _require_originals(self, sample: Mapping[Hashable, Any], originals: Mapping[Hashable, Any], keys: list[Hashable]) -> None:
        """The one place that insists on ``keep_original=True``, for what the sample has: it may be without a label.

        Every edited sample is asked, not just the rejected: a pipeline that cannot put samples back shall fail at its first.
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
                verdict = self.validator(sample[key], mask, originals.get(key), known=known, seed=record.seed, min_dice=least)
                verdicts[key] = verdict if self.novelty is None else verdict.unless_copied(self.novelty(sample[key], mask))
        if self.dynamic is not None:
            self.scores = [*self.scores, *(verdict.score for verdict in verdicts.values())][-self.dynamic.length :]
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
        elif accepted and self.options.refine_label and self.label_key in originals:
            sample[self.label_key] = self._refined(originals[self.label_key], verdicts)
        sample.update({self.record_key(key): record.as_dict() for key, record in records.items()})
        logger.debug("accepted %s: %s", accepted, reasons)
        return sample

    def _refined(self, label: NdarrayOrTensor, verdicts: Mapping[Hashable, Verdict]) -> NdarrayOrTensor:
        """The label before the edit with what all validators agree on."""
        plain = convert_to_tensor(label, track_meta=False)
        found = torch.stack([verdict.predicted for verdict in verdicts.values()]).all(0).to(plain.device)
        painted: NdarrayOrTensor = convert_to_dst_type(paint_label(plain, found, self.label_value), dst=label, dtype=label.dtype)[0]
        return painted


LatentValidateD = LatentValidateDict = LatentValidated
