"""Faults of letter B, labels: class ids that changed outside the mask, although the command ended with exit code 0."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_diffaug.commands.cli import main

WHERE = np.zeros((48, 48, 5), int)
WHERE[6:20, 6:20, 1:4], WHERE[28:40, 28:40, 1:4] = 1, 2


def augment(folder: Path, model: str, label: np.ndarray, *options: str, slope: float | None = None) -> tuple[int, Path]:
    """Exit code and folder of one edit of a random volume with this label."""
    volume = np.random.default_rng(0).normal(100, 10, WHERE.shape).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "img.nii.gz")
    image = nib.Nifti1Image(label, np.eye(4))
    if slope is not None:
        from monai_diffaug.files.nifti_volume import write_unscaled

        image.header.set_slope_inter(slope, 0)
        write_unscaled(image, label, folder / "lab.nii.gz")
    else:
        nib.save(image, folder / "lab.nii.gz")
    quick = ["--num-inference-steps", "1", "--guidance-scale", "1", "--prompt", "MRI of brain, glioma", "-q", "--model", model]
    return main(
        ["augment", str(folder / "img.nii.gz"), "--label", str(folder / "lab.nii.gz"), "--out", str(folder / "o"), *quick, *options]
    ), (folder / "o")


@pytest.mark.parametrize(
    ("name", "label", "slope", "value"),
    [
        ("float32 below the integer", np.choose(WHERE, [0, 3, 9]).astype(np.float32) * np.float32(1 - 3e-7), None, 3),
        ("int32 above 2^24", np.choose(WHERE, [0, 614454277, 312782628]).astype(np.int32), None, 614454277),
        ("uint8 with slope 1/41", np.choose(WHERE, [0, 41, 82]).astype(np.uint8), 1 / 41, 1),
        ("uint8, 2 stored as 1.992", np.choose(WHERE, [0, 2, 4]).astype(np.uint8), 0.498, 1),
    ],
)
def test_no_class_changes_outside_the_mask(tmp_path, random_inpainter, name, label, slope, value) -> None:
    code, out = augment(tmp_path, random_inpainter, label, f"--label-value={value}", slope=slope)
    assert code == 0
    before = nib.load(tmp_path / "lab.nii.gz").get_fdata()
    after, mask = nib.load(out / "img_diffaug_label.nii.gz").get_fdata(), nib.load(out / "img_diffaug_mask.nii.gz").get_fdata() > 0
    assert mask.any() and (before[~mask] > 0.5).any()
    assert np.array_equal(after[~mask], before[~mask]) and set(np.rint(after[mask])) == {float(value)}


@pytest.mark.parametrize("value", [-1, 257])
def test_a_label_value_that_the_file_cannot_hold_is_refused_and_never_matches(tmp_path, random_inpainter, capsys, value) -> None:
    label = np.choose(WHERE, [0, 255, 1]).astype(np.uint8)
    code, out = augment(tmp_path, random_inpainter, label, f"--label-value={value}")
    assert code == 2 and f"it has no voxels of value {value}; it has 1 (" in capsys.readouterr().err and not out.exists()


def test_a_fractional_label_is_refused_with_the_count(tmp_path, random_inpainter, capsys) -> None:
    label = np.choose(WHERE, [0, 1, 0]).astype(np.float32)
    label[5, 6:20, 1] = 0.5
    code, out = augment(tmp_path, random_inpainter, label)
    assert code == 2 and "14 voxels that are no whole number, e.g. 0.5" in capsys.readouterr().err and not out.exists()
