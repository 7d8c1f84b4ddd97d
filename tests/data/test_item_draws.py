"""Identity of items and the number of their draws."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug.data.item_draws import DrawCounts, item_identity


def test_each_item_is_counted_separately_and_copies_share_the_counts() -> None:
    counts = DrawCounts()
    assert [counts.take(item) for item in "aab"] == [0, 1, 0]
    assert deepcopy(counts).take("a") == 2 and counts.take("a") == 3
    assert pickle.loads(pickle.dumps(counts)).take("a") == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [("case 1", "case 1"), (7, "7"), (np.int64(7), "7"), (torch.tensor([7]), "7"), (np.array(7), "7"), (Path("a/b.nii"), "a/b.nii")],
)
def test_texts_integers_and_paths_identify_an_item(value: Any, text: str) -> None:
    assert item_identity({"id": value}, "id") == text


def test_an_image_is_identified_by_its_file_name() -> None:
    image = MetaTensor(torch.zeros(1, 2, 2), meta={"filename_or_obj": "scan.nii.gz"})
    assert item_identity({"image": image}, "image") == "scan.nii.gz"
    with pytest.raises(TypeError, match="holds a MetaTensor"):
        item_identity({"image": MetaTensor(torch.zeros(1, 2, 2))}, "image")


@pytest.mark.parametrize("value", [None, 1.5, torch.tensor([1.5]), [1], torch.tensor([1, 2])])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="id_key 'id' holds a"):
        item_identity({"id": value}, "id")


def test_a_missing_key_is_named_with_the_keys_of_the_sample() -> None:
    with pytest.raises(KeyError, match=r"id_key 'id' is not in the sample, which has .*image"):
        item_identity({"image": 1}, "id")
    with pytest.raises(TypeError, match="must be a dictionary, got list"):
        item_identity([1], "id")  # type: ignore[arg-type]
