"""Whole pictures and slices of a datalist."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.run_settings import TrainingInputError
from monai_diffaug.training.slice_pictures import picture_items, pictures_of


def test_a_picture_is_one_slice_as_it_is(user_datalist: Path) -> None:
    entry = read_datalist(user_datalist)[1]
    (picture,) = pictures_of(entry)
    assert np.array_equal(picture.image[0], np.asarray(Image.open(entry.image))) and picture.position is None
    ((word, mask),) = picture.findings
    assert word == "benign nodule" and np.array_equal(mask, np.asarray(Image.open(entry.label)) == 1)
    assert np.array_equal(picture.labelled, mask)


def test_slices_of_a_volume_are_shown_in_the_window(user_datalist: Path) -> None:
    entry = read_datalist(user_datalist)[-1]
    narrow, wide = (torch.stack([p.image for p in pictures_of(entry, window=w)]).float() for w in ((-240.0, 80.0), (-2000.0, 2000.0)))
    assert [p.position for p in pictures_of(entry)] == [0, 1, 2, 3]
    assert float(narrow.std()) > 5 * float(wide.std()) and float(narrow.max()) == 255


def test_items_are_grey_with_everything_labelled_and_names_of_their_own(user_datalist: Path) -> None:
    items = picture_items(str(user_datalist), "validation")
    names = [item["image"].meta["filename_or_obj"] for item in items]
    assert len(items) == len(set(names)) == 12 + 4 and names[:2] == ["validation0.png", "validation1.png"]
    assert names[-1] == "validation_image_slice003.png"
    assert all(item["image"].shape == item["label"].shape and item["image"].dtype == torch.uint8 for item in items)
    assert [int(item["label"].max()) for item in items[:3]] == [0, 1, 1]


def test_a_limit_spreads_over_the_list(user_datalist: Path) -> None:
    names = [item["image"].meta["filename_or_obj"] for item in picture_items(str(user_datalist), "training", limit=3)]
    assert names[:2] == ["training0.png", "training6.png"] and names[2].startswith("training_image_slice")
    with pytest.raises(ValueError, match="limit"):
        picture_items(str(user_datalist), "training", limit=0)
    with pytest.raises(TrainingInputError, match="no such file"):
        picture_items("nowhere.json", "training")
