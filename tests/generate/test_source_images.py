"""Sources: what a datalist says, the state of files, and a source as a sample."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_diffaug.files.picture import ImageFileError
from monai_diffaug.generate.source_images import DatalistError, file_state, load_source, read_sources, source_fields
from tests.generate.tiny_runs import write_datalist, write_sources, write_volume


def test_ids_groups_and_words_have_defaults(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "label": "b.png", "patient": 7, "modality": "CT", "window": [0, 1]}, {"image": "c.png", "id": "x"}]
    first, second = read_sources(write_datalist(tmp_path / "list.json", rows))
    assert (first.id, first.group, first.fold, first.words) == ("a.png", "7", None, {"patient": 7, "modality": "CT"})
    assert (second.id, second.group, second.label, second.path("label")) == ("x", "x", None, None)
    assert first.path("image") == tmp_path / "a.png"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], 'no list "training"'),
        ([{"label": "a.png"}], r'training\[0\]: an entry needs "image"'),
        ([{"image": "a.png"}, {"image": "a.png"}], r"training\[1\]: another entry has the id 'a.png' too"),
        ([{"image": "a.png", "label": 3}], '"label" must be one path or null, got int'),
        ([{"image": "a.png", "fold": "1"}], '"fold" must be a whole number'),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(DatalistError, match=message):
        read_sources(write_datalist(tmp_path / "list.json", rows))


def test_a_file_that_is_no_datalist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatalistError, match="No such file"):
        read_sources(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[")
    with pytest.raises(DatalistError, match="is no JSON"):
        read_sources(tmp_path / "list.json")


def test_a_hash_is_computed_again_only_when_size_or_time_changed(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("one")
    state = file_state(file)
    known = state._replace(sha256="known")
    assert file_state(file, known) == known
    os.utime(file, ns=(1, 1))
    assert file_state(file, known).sha256 == state.sha256
    file.write_text("two")
    assert file_state(file, known).sha256 not in ("known", state.sha256)


def test_a_picture_keeps_its_type_and_its_label_its_class_ids(tmp_path: Path) -> None:
    source = read_sources(write_sources(tmp_path, 1, anatomy="breast"))[0]
    loaded = load_source(source)
    assert loaded.sample["image"].dtype.itemsize == 1 and loaded.sample["label"].unique().tolist() == [0, 2]
    assert loaded.sample["anatomy"] == "breast" and loaded.sample["group"] == "p0"


def test_a_volume_without_a_label_gets_an_empty_one_on_its_grid(tmp_path: Path) -> None:
    source = read_sources(write_volume(tmp_path))[0]
    sample = load_source(source).sample
    assert sample["image"].shape == sample["label"].shape == (1, 40, 48, 5) and not sample["label"].any()
    assert sample["image"].affine.diagonal().tolist() == [0.5, 0.5, 3.0, 1.0]
    assert source_fields(source) == {"image": "ct.nii", "label": None, "group": "ct.nii", "fold": None}


def test_a_source_that_changed_or_vanished_is_refused(tmp_path: Path) -> None:
    source = read_sources(write_sources(tmp_path, 1))[0]
    image = source.path("image")
    assert image is not None
    source = replace(source, image_state=file_state(image))
    image.write_bytes(image.read_bytes() + b"more")
    with pytest.raises(ImageFileError, match="changed since the run began"):
        load_source(source)
    image.unlink()
    with pytest.raises(ImageFileError, match="no such file"):
        load_source(source)


def test_a_jpeg_label_and_a_label_on_another_grid_are_refused(tmp_path: Path) -> None:
    write_sources(tmp_path, 1)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "label.jpg")
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(tmp_path / "small.png")
    for name, message in (("label.jpg", "JPEG, whose compression"), ("small.png", "not on the grid")):
        rows = [{"image": "scan 0.png", "label": name}]
        with pytest.raises(ValueError, match=message):
            load_source(read_sources(write_datalist(tmp_path / "list.json", rows))[0])
    assert json.loads((tmp_path / "list.json").read_text())["training"]
