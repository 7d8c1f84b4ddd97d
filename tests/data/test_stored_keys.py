from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from monai.transforms.traits import RandomizableTrait

from monai_diffaug.data.stored_keys import PackKeysd, UnpackKeysd, with_placeholders

RECORD = {"applied": True, "seed": 7, "score": 0.25, "prompt": "breast, benign mass"}


def test_values_keep_their_types_through_bytes() -> None:
    sample = {"prompt": "Befund: gutartig ü", "id": 3, "image_diffaug": RECORD, "image": torch.ones(1, 2, 2)}
    packed = PackKeysd(("prompt", "id", "image_diffaug", "image"))(sample)
    assert all(isinstance(value, torch.Tensor) for value in packed.values()) and packed["image"] is sample["image"]
    unpacked = UnpackKeysd(("prompt", "id", "image_diffaug"))(packed)
    assert unpacked["image_diffaug"] == RECORD and [type(v) for v in unpacked["image_diffaug"].values()] == [bool, int, float, str]
    assert unpacked["prompt"] == sample["prompt"] and unpacked["id"] == 3


def test_numpy_scalars_and_paths_are_packed_and_other_types_are_refused_with_their_key() -> None:
    keys = ("id", "file", "image_diffaug")
    packed = PackKeysd(keys)({"id": np.int64(3), "file": Path("a/b.nii"), "image_diffaug": {"score": np.float32(0.25)}})
    assert UnpackKeysd(keys)(packed) == {"id": 3, "file": "a/b.nii", "image_diffaug": {"score": 0.25}}
    with pytest.raises(TypeError, match="'prompt' holds a set, which JSON cannot"):
        PackKeysd("prompt")({"prompt": {"a"}})


def test_placeholders_do_not_overwrite_items() -> None:
    assert with_placeholders([{"image": 1, "mask": 2}], ("mask", "prompt")) == [{"image": 1, "mask": 2, "prompt": None}]


def test_the_cached_part_ends_at_unpacking() -> None:
    transform = Compose([PackKeysd("id"), UnpackKeysd("id")])
    assert transform.get_index_of_first(lambda t: isinstance(t, RandomizableTrait)) == 1


def test_cached_and_new_items_become_equal() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0]))
    fresh = {"image": MetaTensor(torch.ones(1, 2, 2), affine=affine), "mask": np.ones((1, 2, 2), np.uint8)}
    meta = {**fresh["image"].meta, "shape": (1, 2, 2), "dtype": "float32"}
    stored = {
        "image": torch.ones(1, 2, 2),
        "image_meta_dict": meta,
        "mask": torch.ones(1, 2, 2, dtype=torch.uint8),
        "mask_meta_dict": {"shape": (1, 2, 2), "dtype": "uint8"},
    }
    one, other = (UnpackKeysd("id", array_keys=("image", "mask"), allow_missing_keys=True)(each) for each in (fresh, stored))
    assert one.keys() == other.keys() == {"image", "mask"}
    assert torch.equal(one["image"].affine, other["image"].affine) and torch.equal(one["image"].affine.float(), affine)
    assert type(one["mask"]) is type(other["mask"]) is torch.Tensor


def test_missing_keys_are_skipped_only_when_allowed() -> None:
    assert PackKeysd("prompt", allow_missing_keys=True)({}) == {} == UnpackKeysd("prompt", allow_missing_keys=True)({})
    with pytest.raises(KeyError, match="prompt"):
        PackKeysd("prompt")({})
