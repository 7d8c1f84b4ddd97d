from __future__ import annotations

import pytest

from monai_diffaug.prompts import vocabulary_of
from monai_diffaug.training.embedded.datasets import SOURCES, load_samples, names_without


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.name)
def test_a_group_is_wholly_in_one_split_and_no_image_is_lost(source, real_data) -> None:
    train, held = load_samples(source.name, "train"), load_samples(source.name, "validation")
    assert not {s.group for s in train} & {s.group for s in held}
    assert sorted(s.index for s in (*train, *held)) == list(range(len(train) + len(held)))
    assert 0.1 < len(held) / (len(train) + len(held)) < 0.3


def test_every_finding_of_the_data_is_a_word_of_its_vocabulary() -> None:
    for source in SOURCES:
        assert set(source.findings.values()) <= set(vocabulary_of(source.modality).findings[source.anatomy])


def test_the_optic_disc_holds_the_cup(real_data) -> None:
    masks = dict(load_samples("fundus_disc_cup", "validation")[0].masks())
    assert not (masks["optic cup"] & ~masks["optic disc"]).any()


def test_a_missing_folder_says_which_variable_to_set(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="MONAI_DIFFAUG_DATA"):
        load_samples("breast_ultrasound", "train", str(tmp_path))
    with pytest.raises(ValueError, match="got 'test'"):
        load_samples("breast_ultrasound", "test")


def test_a_data_set_that_is_left_out_must_exist() -> None:
    assert set(names_without(["spine_mri"])) == {s.name for s in SOURCES} - {"spine_mri"}
    with pytest.raises(ValueError, match="no data set 'spine' to leave out; the data sets are breast_ultrasound"):
        names_without(["spine"])
