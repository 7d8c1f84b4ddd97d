from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_diffaug.generate.export_cases import ExportError
from monai_diffaug.generate.export_run import export_run
from tests.generate.run_folders import save, small_run


def export(maker, **options) -> tuple[Path, dict]:
    maker.finish()
    out = maker.folder / "Dataset501_Test"
    export_run(maker.run, "nnunet", out, **options)
    return out, json.loads((out / "dataset.json").read_text())


def test_real_cases_are_listed_and_only_synthetic_ones_are_written(tmp_path):
    maker = small_run(tmp_path)
    out, content = export(maker)
    assert content["numTraining"] == 10 and content["file_ending"] == ".png" and content["labels"] == {"background": 0, "lesion": 1}
    for entry in maker.entries:
        listed = next(case for case in content["dataset"].values() if case["images"] == [str(tmp_path / entry["image"])])
        assert listed["label"] == str(tmp_path / entry["label"])
    assert len(list((out / "imagesTr").iterdir())) == 6 == len(list((out / "labelsTr").iterdir()))
    record = maker.records[0]
    (image,), label = content["dataset"][record.job]["images"], content["dataset"][record.job]["label"]
    assert image == f"imagesTr/{record.job}_0000.png"
    for path, role in ((image, "image.png"), (label, "label.png")):
        assert (out / path).read_bytes() == (maker.run / "results" / record.job / role).read_bytes()


def test_splits_hold_real_cases_in_validation_and_follow_source_and_donor(tmp_path):
    maker = small_run(tmp_path)
    out, content = export(maker)
    groups = {record.job: {record.source["group"]} | ({record.donor["group"]} if record.donor else set()) for record in maker.records}
    real = {Path(case["images"][0]).name: name for name, case in content["dataset"].items() if name not in content["synthetic"]}
    for entry in maker.entries:
        groups[real[Path(entry["image"]).name]] = {entry["group"]}
    splits = json.loads((out / "splits_final.json").read_text())
    assert len(splits) == 3
    for split in splits:
        validating = set().union(*(groups[name] for name in split["val"]))
        assert not set(split["val"]) & set(content["synthetic"])
        assert not [name for name in split["train"] if groups[name] & validating]
        # nothing is left out without need
        assert {name for name in content["synthetic"] if not groups[name] & validating} <= set(split["train"])


def test_three_channels_of_a_picture_are_one_file_with_three_names(tmp_path):
    out, content = export(small_run(tmp_path, shape=(48, 40, 3)))
    assert list(content["channel_names"].values()) == ["R", "G", "B"]
    assert all(len(case["images"]) == 1 for case in content["dataset"].values())
    assert np.array(Image.open(next((out / "imagesTr").iterdir()))).shape == (48, 40, 3)


def test_ct_volumes_are_named_ct_and_ct_pictures_are_not(tmp_path):
    for name, shape, expected in (("v", (48, 40, 4), "CT"), ("p", (48, 40), "windowed CT")):
        maker = small_run(tmp_path / name, shape=shape)
        for entry in maker.entries:
            entry["modality"] = "ct"
        assert export(maker)[1]["channel_names"] == {"0": expected}


def test_a_volume_with_two_channels_is_split_and_one_file_per_channel_is_listed(tmp_path):
    maker = small_run(tmp_path, shape=(48, 40, 4))
    for entry in maker.entries[:2]:  # both channels in one file
        values = np.asarray(nib.load(tmp_path / entry["image"]).dataobj)
        save(np.stack([values, values + 1], -1), tmp_path / entry["image"])
    for entry in maker.entries[2:]:  # a file per channel
        second = entry["image"].replace(".nii.gz", "_t2.nii.gz")
        save(np.asarray(nib.load(tmp_path / entry["image"]).dataobj) + 1, tmp_path / second)
        entry["image"] = [entry["image"], second]
    for record in maker.records:
        path = maker.run / "results" / record.job / "image.nii.gz"
        if path.exists():
            values = np.asarray(nib.load(path).dataobj)
            save(np.stack([values, values + 1], -1), path)
    out, content = export(maker, channels=("T1", "T2"))
    assert content["channel_names"] == {"0": "T1", "1": "T2"}
    assert all(len(case["images"]) == 2 for case in content["dataset"].values())
    listed = [name for name, case in content["dataset"].items() if not case["images"][0].startswith("imagesTr")]
    assert len(listed) == 2 and all(name[0] in "bc" for name in listed)
    first, second = (np.asarray(nib.load(out / f"imagesTr/{maker.records[0].job}_000{k}.nii.gz").dataobj) for k in (0, 1))
    assert np.array_equal(second, first + 1)


def test_renumbered_ids_are_written_into_all_labels_and_named(tmp_path):
    maker = small_run(tmp_path, ids={"mass": 4}, value=4)
    out, content = export(maker)
    assert content["labels"] == {"background": 0, "mass": 1} and content["class_ids_before"] == {"background": 0, "mass": 4}
    labels = {name: np.array(Image.open(out / case["label"])) for name, case in content["dataset"].items()}
    assert len(labels) == 10 and all(set(np.unique(label)) == {0, 1} for label in labels.values())
    assert set(np.unique(np.array(Image.open(tmp_path / maker.entries[0]["label"])))) == {0, 4}  # the real file is as it was


def test_an_ignored_class_is_the_last(tmp_path):
    _, content = export(small_run(tmp_path, ids={"unsure": 1, "mass": 2}, value=2), ignore=1)
    assert content["labels"] == {"background": 0, "mass": 1, "ignore": 2}


def test_files_that_nnunet_would_read_otherwise_are_written(tmp_path):
    maker = small_run(tmp_path)
    picture = Image.open(tmp_path / maker.entries[0]["image"])
    maker.entries[0]["id"], maker.entries[1]["id"] = maker.entries[0]["image"], maker.entries[1]["image"]
    picture.save(tmp_path / "images/a1.bmp")
    maker.entries[0]["image"] = "images/a1.bmp"
    exif = Image.Exif()
    exif[0x0112] = 3
    picture.save(tmp_path / maker.entries[1]["image"], exif=exif)
    palette = Image.fromarray(np.array(Image.open(tmp_path / maker.entries[2]["label"]))).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0] + [9] * 762)
    palette.save(tmp_path / maker.entries[2]["label"])
    ids = np.array(palette)
    out, content = export(maker)
    written = {name: case for name, case in content["dataset"].items() if name not in content["synthetic"]}
    assert [case["images"][0].startswith("imagesTr") for case in written.values()] == [True, True, False, False]
    third = list(written.values())[2]["label"]
    assert third.startswith("labelsTr") and np.array_equal(np.array(Image.open(out / third)), ids)
    turned = np.array(Image.open(out / list(written.values())[1]["images"][0]))
    assert np.array_equal(turned, np.array(picture)[::-1, ::-1])


def test_a_path_with_a_variable_is_not_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("SITE", "elsewhere")
    maker = small_run(tmp_path / "$SITE")
    _, content = export(maker)
    assert not [case for case in content["dataset"].values() if "SITE" in case["images"][0] + case["label"]]


def test_a_normal_image_without_a_label_has_a_blank_one(tmp_path):
    maker = small_run(tmp_path)
    maker.source("n", finding="normal tissue", label=None)
    out, content = export(maker)
    name = next(name for name in content["dataset"] if name.startswith("n-"))
    assert not np.array(Image.open(out / content["dataset"][name]["label"])).any()


def test_mixed_images_and_a_wrong_folder_name_are_refused(tmp_path):
    maker = small_run(tmp_path)
    save(np.zeros((48, 40, 3), np.uint8), tmp_path / maker.entries[1]["image"])
    with pytest.raises(ExportError, match=r"one kind of image; there are 9 pictures with 1 channel.*1 pictures with 3"):
        export(maker)
    with pytest.raises(ExportError, match="Dataset501_DiffAug"):
        export_run(maker.run, "nnunet", tmp_path / "out")
    with pytest.raises(ExportError, match="2 channel name"):
        export(small_run(tmp_path / "b"), channels=("A", "B"))
    assert not [path for path in tmp_path.iterdir() if "Dataset" in path.name]
