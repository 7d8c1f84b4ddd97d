"""Images of the studies: what a datalist gives, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.studies.study_images import StudyData, StudyInputError


def test_pictures_of_the_packs_come_as_they_are(real_data: Path, packed) -> None:
    data = StudyData.open(packed("fundus_disc_cup", "spleen_ct"))
    with np.load(real_data / "fundus_disc_cup.npz") as pack:
        for image in data.only("fundus_disc_cup").images():
            label = pack["labels"][image.index]
            assert np.array_equal(image.image.permute(1, 2, 0), pack["images"][image.index]) and image.group == pack["groups"][image.index]
            assert [word for word, _ in image.findings] == ["optic disc", "optic cup"]
            assert np.array_equal(image.findings[0][1], label > 0) and np.array_equal(image.findings[1][1], label == 2)
    spleen = data.only("spleen_ct").images()
    assert all(image.image.shape == (1, 256, 256) and image.image.dtype == torch.uint8 for image in spleen)
    assert data.finding_words == ("optic disc", "optic cup", "spleen") and data.title == "fundus disc cup, spleen ct"


def test_a_picture_without_an_outline_is_not_normal_when_it_shows_something(packed) -> None:
    images = StudyData.open(packed("chest_xray")).images()
    assert {image.whole for image in images} == {"normal tissue", "pneumonia"}
    assert all(image.is_normal == (image.whole == "normal tissue") for image in images)


def test_slices_of_a_volume_are_those_with_a_finding_in_8_bits_and_share_a_group(user_datalist: Path) -> None:
    data = StudyData.open(user_datalist, window=(-400.0, 480.0))
    slices = [image for image in data.images() if image.index == 12]
    assert len(slices) == 4 and len({image.group for image in slices}) == 1
    assert all(image.image.dtype == torch.uint8 and image.findings[0][0] == "benign nodule" for image in slices)
    values = torch.stack([image.image for image in slices]).float()
    assert 20 < float(values.min()) < 50 and 120 < float(values.max()) < 170  # 4 x 40 to 4 x 140, shown in a window of 880


def test_the_groups_of_a_list_are_numbered_over_both_lists(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20), 90, np.uint8)).save(tmp_path / "a.png")
    row = {"image": "a.png", "finding": "normal tissue"}
    file = tmp_path / "list.json"

    def groups(names: list[str]) -> list[int]:
        rows = [{**row, "group": name} for name in names]
        file.write_text(json.dumps({"modality": "ct", "anatomy": "brain", "training": rows[:2], "validation": rows[2:]}))
        data = StudyData.open(file)
        return [image.group for section in ("training", "validation") for image in data.images(section)]

    assert groups(["7", "3", "7"]) == [7, 3, 7]
    assert groups(["anna", "bert", "anna"]) == [0, 1, 0]


def test_preferred_data_sets_are_used_where_the_list_has_them(packed) -> None:
    file = packed("colonoscopy_polyp", "spleen_ct", "volumes")
    assert StudyData.open(file, preferred=("spleen_ct", "other")).datasets == ("spleen_ct",)
    assert StudyData.open(file, preferred=("other",)).datasets == ("colonoscopy_polyp", "spleen_ct")
    assert StudyData.open(file, ["colonoscopy_polyp"], preferred=("spleen_ct",)).datasets == ("colonoscopy_polyp",)
    with pytest.raises(StudyInputError, match="no data set 'liver'; it has colonoscopy_polyp, spleen_ct, body_ct"):
        StudyData.open(file, ["liver"])
    with pytest.raises(StudyInputError, match="choose one with --dataset"):
        StudyData.open(file).require_one()


def test_a_list_without_validation_images_says_so(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "finding": "normal tissue", "modality": "ct", "anatomy": "brain"}]
    (tmp_path / "list.json").write_text(json.dumps({"training": rows}))
    with pytest.raises(StudyInputError, match='needs images in the "validation" list'):
        StudyData.open(tmp_path / "list.json").images()


def test_a_data_set_for_training_only_is_left_out_unless_it_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "a.png")
    rows = {name: {"image": "a.png", "finding": "normal tissue", "dataset": name} for name in ("more", "few")}
    content = {"modality": "ct", "anatomy": "liver", "training": list(rows.values()), "validation": [rows["few"]]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    assert StudyData.open(tmp_path / "datalist.json").datasets == ("few",)
    assert StudyData.open(tmp_path / "datalist.json", ["more"]).datasets == ("more",)
