from __future__ import annotations

from monai.data import list_data_collate

from monai_diffaug.edit.record import DiffAugRecord, original_key, record_key

TYPES = {
    "applied": bool,
    "accepted": bool,
    "seed": int,
    "prompt": str,
    "model": str,
    "n_slices": int,
    "score": float,
    "tries": int,
    "reason": str,
    "contrast": float,
    "cnr": float,
    "size_mm": float,
}


def test_a_record_holds_plain_values_of_fixed_types_and_nothing_else() -> None:
    record = DiffAugRecord().as_dict()
    assert {name: type(value) for name, value in record.items()} == TYPES
    assert record_key("image") == "image_diffaug" and original_key("image") == "image_original"


def test_a_record_survives_the_way_through_a_sample_and_collate() -> None:
    record = DiffAugRecord(applied=True, seed=2**32 - 1, prompt="a mass", score=0.5, tries=2)
    assert DiffAugRecord.from_dict(record.as_dict()) == record
    batch = list_data_collate([{"image_diffaug": record.as_dict()}, {"image_diffaug": DiffAugRecord().as_dict()}])["image_diffaug"]
    assert batch["seed"].tolist() == [2**32 - 1, 0] and batch["prompt"] == ["a mass", ""] and batch["applied"].tolist() == [True, False]
