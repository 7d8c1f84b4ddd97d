from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from monai_diffaug.generate.audit_files import read_records
from monai_diffaug.generate.audit_run import audit_run
from monai_diffaug.generate.run_folder import RECORD_FILE
from tests.generate.run_folders import AFFINE, load, save, sha256, small_run


def faults_of(maker, **options):
    return [(fault.kind, fault.where, fault.text) for fault in audit_run(maker.run, copies=False, **options).faults]


def rewrite(maker, record, role, array, **changes):
    """Replace a file of a result, with the right hash in its record."""
    place = maker.run / "results" / record.job
    save(array, place / record.files[role])
    content = json.loads((place / RECORD_FILE).read_text()) | changes
    content["sha256"][role] = sha256(place / record.files[role])
    (place / RECORD_FILE).write_text(json.dumps(content))


@pytest.mark.parametrize("shape", [(48, 40), (48, 40, 3), (48, 40, 5)], ids=["grey", "rgb", "volume"])
def test_a_clean_run_has_no_fault(tmp_path, shape):
    assert faults_of(small_run(tmp_path, shape=shape)) == []


def test_a_changed_missing_or_added_file_is_named(tmp_path):
    maker = small_run(tmp_path)
    first, second, third = (maker.run / "results" / record.job for record in maker.records[:3])
    (first / "image.png").write_bytes((second / "image.png").read_bytes() + b"\0")
    (second / "label.png").unlink()
    (third / "notes.txt").write_text("x")
    assert [(kind, where) for kind, where, _ in faults_of(maker)] == [("hash", first.name), ("file", second.name), ("file", third.name)]
    assert not [kind for kind, _, _ in faults_of(maker, hashes=False) if kind == "hash"]


def test_missing_and_damaged_records_and_left_over_parts_are_named(tmp_path):
    maker = small_run(tmp_path)
    places = [maker.run / "results" / record.job for record in maker.records]
    (places[0] / RECORD_FILE).unlink()
    (places[1] / RECORD_FILE).write_text("{}")
    (places[2]).rename(maker.run / "results" / "other-00000000-000")
    (maker.run / "results" / ".part").mkdir()
    found = {(kind, where) for kind, where, _ in faults_of(maker)}
    assert {("record", place.name) for place in (*places[:2], maker.run / ".part", places[2].with_name("other-00000000-000"))} <= found
    assert len(read_records(maker.run)[0]) == len(places) - 3


def test_jobs_of_the_spec_and_of_the_index_without_a_result_are_named(tmp_path):
    maker = small_run(tmp_path)
    settings = json.loads((maker.run / "run.json").read_text())
    settings["sources"] = {entry["image"]: {} for entry in maker.entries}
    (maker.run / "run.json").write_text(json.dumps(settings))
    found = faults_of(maker)
    assert [(kind, where[:3]) for kind, where, _ in found] == [("record", "a2-")]  # two copies of each source, a2 has one
    with (maker.run / "index.jsonl").open("a") as file:
        file.write('{"job": "gone-00000000-000"}\nno json\n')
    assert {where for _, where, _ in faults_of(maker)} >= {"gone-00000000-000", "index.jsonl"}


def test_a_failed_job_is_a_fault(tmp_path):
    maker = small_run(tmp_path)
    (maker.run / "failed").mkdir()
    failure = {"job": "x-00000000-000", "error": "MemoryError", "attempts": 2, "traceback": ""}
    (maker.run / "failed" / "x-00000000-000.json").write_text(json.dumps(failure))
    assert faults_of(maker) == [("failed", "x-00000000-000", "MemoryError (2 attempts)")]


def test_a_label_on_another_grid_and_a_moved_result_are_grid_faults(tmp_path):
    maker = small_run(tmp_path, shape=(48, 40, 5))
    first, second, third = maker.records[:3]
    rewrite(maker, first, "label", np.zeros((48, 40, 4), np.uint8))
    place = maker.run / "results" / second.job / "image.nii.gz"
    moved = AFFINE.copy()
    moved[0, 3] = 40
    nib.save(nib.Nifti1Image(load(place), moved), place)
    for role in ("label", "mask"):
        path = place.with_name(f"{role}.nii.gz")
        nib.save(nib.Nifti1Image(load(path), moved), path)
    found = faults_of(maker, hashes=False)
    assert [(kind, where) for kind, where, _ in found] == [("grid", first.job), ("grid", second.job)]
    assert "40 mm away" in found[1][2]
    rewrite(maker, third, "image", np.asarray(load(maker.run / "results" / third.job / "image.nii.gz"))[:-1])
    assert ("grid", third.job) in [(kind, where) for kind, where, _ in faults_of(maker, hashes=False)]


def test_unknown_class_ids_and_an_unpainted_class_are_label_faults(tmp_path):
    maker = small_run(tmp_path)
    first, second = maker.records[:2]
    label = load(maker.run / "results" / first.job / "label.png").copy()
    label[0, 0] = 7
    rewrite(maker, first, "label", label)
    rewrite(maker, second, "label", load(tmp_path / maker.entries[1]["label"]))
    found = faults_of(maker)
    assert [(kind, where) for kind, where, _ in found] == [("label", first.job), ("label", second.job)]
    assert "class ids 7" in found[0][2] and "no voxel of class 1" in found[1][2]


def test_a_control_with_more_label_than_its_source_is_a_fault(tmp_path):
    maker = small_run(tmp_path)
    control = next(record for record in maker.records if record.kind == "control")
    label = load(tmp_path / maker.entries[2]["label"]).copy()
    label[0, 0] = 1
    rewrite(maker, control, "label", label)
    assert [(kind, where) for kind, where, _ in faults_of(maker)] == [("label", control.job)]


def test_an_empty_mask_and_a_result_that_equals_its_source_are_faults(tmp_path):
    maker = small_run(tmp_path)
    first, second = maker.records[:2]
    rewrite(maker, first, "mask", np.zeros((48, 40), np.uint8))
    rewrite(maker, second, "image", load(tmp_path / maker.entries[1]["image"]))
    assert [(kind, text) for kind, _, text in faults_of(maker)] == [("label", "the mask is empty"), ("copy", "the image equals its source")]


def test_a_source_that_changed_or_vanished_is_a_fault(tmp_path):
    maker = small_run(tmp_path)
    image = load(tmp_path / maker.entries[3]["image"]).copy()
    image[0, 0] += 1
    save(image, tmp_path / maker.entries[3]["image"])
    assert [(kind, where) for kind, where, _ in faults_of(maker)] == [("source", maker.entries[3]["image"])]
    (tmp_path / maker.entries[3]["image"]).unlink()
    assert "is missing" in " ".join(text for _, _, text in faults_of(maker))
