from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from monai.data.decathlon_datalist import load_decathlon_datalist, load_decathlon_properties
from monai.transforms import LoadImage
from PIL import Image

from monai_diffaug.generate.export_cases import ExportError
from monai_diffaug.generate.export_run import export_run
from tests.generate.run_folders import AFFINE, small_run


def test_monai_reads_the_task_and_its_folds(tmp_path):
    maker = small_run(tmp_path, shape=(48, 40, 4), ids={"mass": 3}, value=3)
    out = tmp_path / "Task501_Test"
    export_run(maker.run, "decathlon", out)
    content = load_decathlon_properties(out / "dataset.json", ["name", "labels", "modality", "numTraining", "numTest"])
    assert content == {
        "name": "Test",
        "labels": {"0": "background", "1": "mass"},
        "modality": {"0": "ultrasound"},
        "numTraining": 10,
        "numTest": 0,
    }
    items = load_decathlon_datalist(out / "dataset.json")
    assert len(items) == 10
    for item in items:
        image, label = LoadImage(image_only=True)(item["image"]), LoadImage(image_only=True)(item["label"])
        assert image.shape == label.shape == (48, 40, 4) and np.allclose(image.affine, AFFINE) and np.allclose(label.affine, AFFINE)
        assert set(np.unique(label)) == {0, 1}
    splits = json.loads((out / "splits_final.json").read_text())
    for k, split in enumerate(splits):
        lists = {key: load_decathlon_datalist(out / f"fold_{k}.json", data_list_key=key) for key in ("training", "validation")}
        assert [[item["case"] for item in lists[key]] for key in lists] == [split["train"], split["val"]]
        assert all(LoadImage(image_only=True)(item["image"]).shape == (48, 40, 4) for item in lists["validation"])


def test_volumes_are_the_files_themselves(tmp_path):
    maker = small_run(tmp_path, shape=(48, 40, 4))
    export_run(maker.run, "decathlon", tmp_path / "Task501_Test")
    job = maker.records[0].job
    source = maker.run / "results" / job / "image.nii.gz"
    assert (tmp_path / "Task501_Test" / "imagesTr" / f"{job}.nii.gz").read_bytes() == source.read_bytes()


def test_colour_pictures_become_volumes_with_channels_last(tmp_path):
    maker = small_run(tmp_path, shape=(48, 40, 3))
    out = tmp_path / "Task501_Test"
    export_run(maker.run, "decathlon", out)
    job = maker.records[0].job
    image, label = (nib.load(out / folder / f"{job}.nii.gz") for folder in ("imagesTr", "labelsTr"))
    assert image.shape == (40, 48, 1, 3) and label.shape == (40, 48, 1)
    pixels = np.array(Image.open(maker.run / "results" / job / "image.png"))
    assert np.array_equal(np.asarray(image.dataobj)[:, :, 0].transpose(1, 0, 2), pixels)
    ids = np.array(Image.open(maker.run / "results" / job / "label.png"))
    assert np.array_equal(np.asarray(label.dataobj)[:, :, 0].T, ids)
    assert json.loads((out / "dataset.json").read_text())["tensorImageSize"] == "4D"


def test_a_folder_with_another_name_is_refused(tmp_path):
    with pytest.raises(ExportError, match="Task501_DiffAug"):
        export_run(small_run(tmp_path).run, "decathlon", tmp_path / "out")
