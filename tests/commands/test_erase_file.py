from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_diffaug.commands.cli import main

QUICK = ["--num-inference-steps", "1", "--guidance-scale", "1", "--yes", "-q"]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A CT volume with an organ (1) and a lesion in it (2)."""
    random = np.random.RandomState(0)
    affine = np.diag([-1.0, 1.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(random.randint(0, 90, (48, 48, 6)).astype(np.int16), affine), tmp_path / "ct.nii.gz")
    label = np.zeros((48, 48, 6), np.uint8)
    label[10:38, 10:38, 1:5], label[20:26, 20:28, 2:4] = 1, 2
    nib.save(nib.Nifti1Image(label, affine), tmp_path / "label.nii.gz")
    return tmp_path


def erase(folder: Path, *options: str) -> tuple[int, Path]:
    arguments = ["augment", str(folder / "ct.nii.gz"), "--label", str(folder / "label.nii.gz"), "--erase", "--out", str(folder / "out")]
    return main([*arguments, *QUICK, *options]), folder / "out"


@pytest.mark.slow
def test_the_lesion_goes_from_the_volume_and_its_label_and_nothing_else_changes(volume, random_inpainter) -> None:
    code, out = erase(volume, "--label-value", "2", "--modality", "CT", "--anatomy", "abdomen", "--model", random_inpainter)
    record = json.loads((out / "ct_diffaug.json").read_text())
    assert code == 0 and record["record"]["prompt"] == "CT of abdomen, normal tissue" and record["figures"]["changed_outside"] == 0
    before, after = (nib.load(path).get_fdata() for path in (volume / "label.nii.gz", out / "ct_diffaug_label.nii.gz"))
    image, edited = (np.asarray(nib.load(path).dataobj) for path in (volume / "ct.nii.gz", out / "ct_diffaug.nii.gz"))
    assert edited.dtype == image.dtype == np.int16
    if record["record"]["accepted"]:
        assert np.array_equal(after, np.where(before == 2, 0, before)) and (image != edited)[before == 2].mean() > 0.9
    else:
        assert np.array_equal(after, before) and np.array_equal(image, edited)
    mask = np.asarray(nib.load(out / "ct_diffaug_mask.nii.gz").dataobj)
    assert mask[before == 2].all() and mask[17:29, 17:31].any(axis=2).sum() > 6 * 8 and mask[:, :, 4].any()  # 3 mm on each side


@pytest.mark.slow
def test_the_same_seed_gives_the_same_files_and_a_picture_of_a_mask_becomes_black(tmp_path, random_inpainter) -> None:
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64), np.uint8)).save(tmp_path / "us.png")
    spot = np.zeros((64, 64), np.uint8)
    spot[20:30, 24:40] = 255
    Image.fromarray(spot).save(tmp_path / "spot.png")
    pixels = []
    for name in ("one", "other"):
        arguments = ["augment", str(tmp_path / "us.png"), "--label", str(tmp_path / "spot.png"), "--erase", "--out", str(tmp_path / name)]
        assert main([*arguments, *QUICK, "--model", random_inpainter]) == 0
        pixels.append(np.asarray(Image.open(tmp_path / name / "us_diffaug.png")))
    assert np.array_equal(*pixels)
    record = json.loads((tmp_path / "one/us_diffaug.json").read_text())["record"]
    label = np.asarray(Image.open(tmp_path / "one/us_diffaug_label.png"))
    assert record["prompt"] == "normal tissue" and label.any() != record["accepted"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--finding", "glioma"], "--erase paints normal tissue"),
        (["--modality", "CT"], "--modality and --anatomy together"),
        (["--modality", "sonar", "--anatomy", "sea"], "'sonar' has no vocabulary"),
        (["--prompt", " "], "--prompt is empty"),
        (["--place", "tissue"], "not allowed with --place"),
        (["--label-value", "9"], "it has no voxels of value 9"),
    ],
)
def test_options_that_do_not_fit_are_one_line(volume, options, words, capsys) -> None:
    assert erase(volume, *options)[0] == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error and not (volume / "out").exists()


def test_erasing_needs_a_label(volume, capsys) -> None:
    assert main(["augment", str(volume / "ct.nii.gz"), "--erase", "--out", str(volume / "out")]) == 2
    assert "--erase erases the lesions of --label FILE: give it" in capsys.readouterr().err
