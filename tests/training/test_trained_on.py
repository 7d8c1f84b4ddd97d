from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from monai_diffaug.geometry.window import Window
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.trained_on import trained_on


def make(seed: int, finding: str = "cyst", low: float = 0.0) -> LabelledSlice:
    rng = np.random.RandomState(seed)
    lesion = rng.rand(12, 10) > 0.5
    stored = torch.from_numpy(rng.randint(0, 999, (1, 12, 10)).astype(np.int16))
    return LabelledSlice(stored, lesion, lesion, finding, "ct", "abdomen", "", f"image {seed}", Window(low, 500.0), "axial")


BOTH = [make(0), make(1, "metastasis")]


def test_it_says_what_is_trained_on():
    description = trained_on([*BOTH, replace(make(2, "normal tissue"), lesion=np.zeros((12, 10), bool))])
    assert description.pop("data").startswith("2 lesions, 1 normal slices, ")
    assert description == {
        "plane": "axial",
        "window": [0.0, 500.0],
        "words": "ct, abdomen, cyst; ct, abdomen, metastasis; ct, abdomen, normal tissue",
    }
    assert trained_on([]) == {}


def test_order_names_and_the_last_digits_of_a_percentile_do_not_count():
    first, second = (replace(s, name="elsewhere", window=Window(0.0, 500.0000001)) for s in BOTH)
    assert trained_on([second, first]) == trained_on(BOTH)


@pytest.mark.parametrize("pick", ["stored", "lesion", "labelled"])
def test_one_other_pixel_counts(pick):
    array = getattr(BOTH[0], pick)
    other = array.clone() if pick == "stored" else array.copy()
    other[..., 3, 4] = 1 - other[..., 3, 4] if pick == "stored" else ~other[3, 4]
    description, before = trained_on([replace(BOTH[0], **{pick: other}), BOTH[1]]), trained_on(BOTH)
    assert description.pop("data") != before.pop("data") and description == before


def test_a_word_counts_and_so_does_which_lesion_it_belongs_to():
    renamed = trained_on([replace(s, anatomy="thorax") for s in BOTH])
    assert renamed["words"] != trained_on(BOTH)["words"] and renamed["data"] == trained_on(BOTH)["data"]
    exchanged = trained_on([replace(BOTH[0], finding="metastasis"), replace(BOTH[1], finding="cyst")])
    assert exchanged["words"] == trained_on(BOTH)["words"] and exchanged["data"] != trained_on(BOTH)["data"]


def test_the_data_set_counts():
    assert trained_on([replace(BOTH[0], dataset="cysts"), BOTH[1]])["data"] != trained_on(BOTH)["data"]


def test_an_image_listed_twice_is_drawn_twice_and_counts():
    assert trained_on([*BOTH, BOTH[0]])["data"] != trained_on(BOTH)["data"]


def test_different_windows_and_many_captions_are_described_in_short():
    many = [replace(make(k), prompt=f"words {k}", window=Window(k, 500.0)) for k in range(5)]
    description = trained_on(many)
    assert description["window"] == "of each image" and description["words"].startswith("5 captions ")
    assert trained_on([*many[:4], replace(many[4], prompt="other words")])["words"] != description["words"]
