from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.training.datalist import ANY_VALUE, Entry
from monai_diffaug.training.read_entry import read_entry
from monai_diffaug.training.run_settings import TrainingInputError


def write_picture(folder, findings):
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    label = np.zeros((3, 4), np.uint8)
    label[0, 1:], label[1, 2] = 1, 2
    Image.fromarray(image).save(folder / "i.png")
    Image.fromarray(label).save(folder / "l.png")
    return Entry(folder / "i.png", folder / "l.png", findings, "ct", "brain")


def test_a_picture_is_read_rows_first_in_its_own_numbers_with_its_class_ids(tmp_path):
    content = read_entry(write_picture(tmp_path, {(1,): "cyst"}))
    assert content.image.dtype == torch.uint8 and content.image[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert content.ids.dtype == torch.int64 and content.ids[0].tolist() == [[0, 1, 1, 1], [0, 0, 2, 0], [0, 0, 0, 0]]
    assert content.affine is None


def test_the_masks_are_those_of_the_findings_that_the_label_shows(tmp_path):
    content = read_entry(write_picture(tmp_path, {(1, 2): "optic disc", (2,): "optic cup", (5,): "drusen"}))
    assert [(finding, int(mask.sum()), tuple(mask.shape)) for finding, mask in content.masks()] == [
        ("optic disc", 4, (1, 3, 4)),
        ("optic cup", 1, (1, 3, 4)),
    ]


def test_without_a_label_no_class_is_set_and_no_finding_has_a_mask(tmp_path):
    write_picture(tmp_path, {})
    content = read_entry(Entry(tmp_path / "i.png", None, {ANY_VALUE: "pneumonia"}, "x-ray", "chest"))
    assert not content.ids.any() and content.ids.shape == (1, 3, 4) and list(content.masks()) == []


def test_a_volume_keeps_its_array_order_and_brings_its_affine(tmp_path):
    affine = np.diag([2.0, 1, 3, 1])
    volume = np.random.RandomState(0).randint(-900, 900, (5, 6, 7)).astype(np.int16)
    for name, values in (("i", volume), ("l", (volume > 0).astype(np.uint8))):
        nib.save(nib.Nifti1Image(values, affine), tmp_path / f"{name}.nii.gz")
    content = read_entry(Entry(tmp_path / "i.nii.gz", tmp_path / "l.nii.gz", {ANY_VALUE: "spleen"}, "ct", "abdomen"))
    assert torch.equal(content.image[0], torch.from_numpy(volume)) and np.allclose(content.affine, affine)
    assert torch.equal(content.ids[0] > 0, torch.from_numpy(volume > 0))


def test_a_label_on_another_grid_is_refused(tmp_path):
    entry = write_picture(tmp_path, {(1,): "cyst"})
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(entry.label)
    with pytest.raises(GridMismatchError, match=r"l.png \(4, 4\) is not on the grid of image i.png \(3, 4\)"):
        read_entry(entry)


def test_a_missing_or_broken_file_is_named(tmp_path):
    entry = write_picture(tmp_path, {(1,): "cyst"})
    entry.label.write_text("no picture")
    with pytest.raises(TrainingInputError, match=r"label .*l.png: corrupt or truncated image"):
        read_entry(entry)
