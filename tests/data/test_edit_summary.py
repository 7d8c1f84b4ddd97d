from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
from monai.data import DataLoader, Dataset

from monai_diffaug import DiffAugRecord, EditSummary, PlaceMaskd


def record(applied: bool = False, reason: str = "", accepted: bool = True) -> dict[str, Any]:
    return DiffAugRecord(applied=applied, accepted=accepted, reason=reason).as_dict()


EPOCH = [
    *[{"image_diffaug": record(True)}] * 3,
    *[{"image_diffaug": record(reason="empty mask: no free place was found")}] * 5,
    *[{"image_diffaug": record(reason=f"Dice 0.{i} < 0.70", accepted=False)} for i in range(4)],
    *[{"image_diffaug": record(True, reason="Dice 0.1 < 0.70", accepted=False)}] * 2,
    *[{"image_diffaug": record(reason="not triggered")}] * 6,
    {"image_diffaug": record(reason="empty mask: none was to be placed")},
]
TEXT = """5 of 14 triggered samples edited, 6 rejected by the validator (21 samples)
  5: empty mask: no free place was found
  4: Dice # < #"""


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 0), (5, 2)])
def test_an_epoch_is_summed_by_reason_whatever_the_batches_and_worker_processes(batch_size: int, workers: int) -> None:
    loader = DataLoader(Dataset(EPOCH), batch_size=batch_size, num_workers=workers)
    summary = EditSummary()
    with pytest.warns(UserWarning, match="only 5 of 14 triggered samples edited"):
        assert len(list(summary.watch(loader))) == -(-len(EPOCH) // batch_size)
    assert str(summary) == TEXT and summary.share == 5 / 14


def test_strict_raises_at_the_end_of_the_epoch_with_the_reasons() -> None:
    batches = EditSummary(strict=True).watch(EPOCH)
    for _ in EPOCH:
        next(batches)
    with pytest.raises(RuntimeError, match=r"(?s)only 5 of 14.*5: empty mask"):
        next(batches)


@pytest.mark.parametrize("options", [{"min_share": 0.3}, {"min_samples": 15}])
def test_enough_edits_or_few_samples_give_no_warning(options: Mapping[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(EditSummary(**options).watch(EPOCH))) == len(EPOCH)


def test_samples_without_records_are_no_success() -> None:
    with pytest.warns(UserWarning, match=r"no record \*_diffaug was in the samples"):
        list(EditSummary().watch([{"image": 1, "image_diffaug": "text"}]))
    summary = EditSummary(record_postfix="second", min_samples=1)
    summary.add({"image_second": record(True), "image_diffaug": record(reason="empty mask")})
    assert (summary.samples, summary.edited) == (1, 1)


def test_a_second_epoch_begins_at_zero_and_lists_of_samples_are_batches() -> None:
    summary = EditSummary(min_share=0)
    for _ in range(2):
        list(summary.watch([EPOCH[:10], EPOCH[10:]]))
        assert summary.samples == len(EPOCH)


@pytest.mark.parametrize("options", [{"min_share": 1.5}, {"min_samples": 0}])
def test_options_out_of_range_are_refused(options: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        EditSummary(**options)


def test_an_organ_map_as_label_is_told_by_its_reason(random_inpainter: str) -> None:
    import torch
    from monai.data import MetaTensor

    from monai_diffaug import DiffusionLocalInpaintd

    sample = {"image": MetaTensor(torch.rand(1, 32, 32) + 1), "label": torch.ones(1, 32, 32), "prompt": "cyst"}
    place, paint = PlaceMaskd("image", label_key="label"), DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter)
    summary = EditSummary(min_samples=2)
    with pytest.warns(
        UserWarning, match="the label marks all of the tissue; if it holds organs, name the class ids of lesions by lesion_values="
    ):
        list(summary.watch(paint(place(sample)) for _ in range(3)))
