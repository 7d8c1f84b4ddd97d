from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_diffaug.generate.export_cases import ExportError
from monai_diffaug.generate.export_run import export_run
from tests.generate.run_folders import small_run

VALIDATOR = shutil.which("bids-validator-deno")


def export(maker, modality: str, **options) -> Path:
    for entry in maker.entries:
        entry["modality"] = modality
    maker.finish()
    out = maker.folder / "bids"
    export_run(maker.run, "bids", out, **options)
    return out


def validate(folder: Path) -> list[str]:
    assert VALIDATOR is not None
    done = subprocess.run([VALIDATOR, str(folder), "--json"], capture_output=True, text=True, timeout=300, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [f"{issue['code']} {issue.get('location')}" for issue in issues if issue["severity"] == "error"]


def test_files_carry_desc_synthetic_and_name_their_sources(tmp_path):
    maker = small_run(tmp_path, shape=(48, 40, 4))
    out = export(maker, "MRI", suffix="T2w")
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Name"] == "monai_diffaug"
    sidecars = {json.loads(path.read_text())["Job"]: path for path in out.rglob("*_T2w.json")}
    assert set(sidecars) == {record.job for record in maker.records if record.state == "accepted"}
    record = next(record for record in maker.records if record.donor)
    path = sidecars[record.job]
    content = json.loads(path.read_text())
    assert path.parent == out / "sub-A" / "anat" and "_desc-synthetic_" in path.name
    assert content["Sources"] == ["bids:source:images/a1.nii.gz", "bids:source:images/b.nii.gz"]
    assert content["SourceGroups"] == ["A", "B"] and len(content["TrainingFolds"]) == 1
    image = path.with_name(path.name.replace(".json", ".nii.gz"))
    assert image.read_bytes() == (maker.run / "results" / record.job / "image.nii.gz").read_bytes()
    for suffix, role in (("dseg", "label"), ("mask", "mask")):
        written = nib.load(path.with_name(path.name.replace("T2w.json", f"{suffix}.nii.gz")))
        assert np.array_equal(
            np.asarray(written.dataobj), np.asarray(nib.load(maker.run / "results" / record.job / f"{role}.nii.gz").dataobj)
        )
    assert (out / "desc-synthetic_dseg.tsv").read_text() == "index\tname\n0\tbackground\n1\tlesion\n"


def test_pictures_of_a_modality_outside_bids_are_listed_in_bidsignore(tmp_path):
    maker = small_run(tmp_path)
    out = export(maker, "ultrasound")
    assert (out / ".bidsignore").read_text().split() == ["export.json", "*_us.json", "*_us.nii.gz"]
    image = nib.load(next(out.rglob("sub-C*_us.nii.gz")))
    pixels = np.array(Image.open(maker.run / "results" / next(r.job for r in maker.records if r.job.startswith("c-")) / "image.png"))
    assert np.array_equal(np.asarray(image.dataobj)[:, :, 0].T, pixels)


def test_groups_with_one_name_after_cleaning_are_two_subjects(tmp_path):
    maker = small_run(tmp_path)
    for entry, group in zip(maker.entries, ("p_1", "p1", "p-1", "q"), strict=True):
        entry["group"] = group
    out = export(maker, "ultrasound")
    assert {path.name for path in out.glob("sub-*")} == {"sub-p1", "sub-p1x2", "sub-p1x3", "sub-q"}


def test_mri_needs_its_contrast_and_an_unknown_modality_is_refused(tmp_path):
    maker = small_run(tmp_path)
    with pytest.raises(ExportError, match="--suffix T2w"):
        export(maker, "MRI")
    with pytest.raises(ExportError, match="'t3w' is none"):
        export(maker, "MRI", suffix="t3w")
    with pytest.raises(ExportError, match="modality 'sonar'"):
        export(maker, "sonar")
    assert not (tmp_path / "bids").exists()


@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed: pip install bids-validator-deno")
@pytest.mark.parametrize(
    ("modality", "shape", "suffix"), [("MRI", (48, 40, 4), "T1w"), ("ct", (48, 40, 4), ""), ("ultrasound", (48, 40, 3), "")]
)
def test_the_bids_validator_accepts_the_derivative(tmp_path, modality, shape, suffix):
    out = export(small_run(tmp_path, shape=shape), modality, suffix=suffix)
    assert validate(out) == []
    next(out.rglob("*_dseg.nii.gz")).rename(out / "sub-A" / "anat" / "lesion.nii.gz")  # the check is able to fail
    assert validate(out)
