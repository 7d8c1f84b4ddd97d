from __future__ import annotations

import warnings
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_diffaug.files.image_file import read_picture
from monai_diffaug.files.picture import ImageFileError
from monai_diffaug.masks.label_file import ids_of_file, require_storable, write_label

IDS = np.zeros((6, 5, 4), np.int64)
IDS[1:3], IDS[3:5] = 1, 2


def scaled_label(path: Path, stored: np.ndarray, slope: float, inter: float = 0.0) -> Path:
    """A NIfTI file with these stored numbers and this scaling."""
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(slope, inter)
    from monai_diffaug.files.nifti_volume import write_unscaled

    write_unscaled(image, stored, path)
    return path


@pytest.mark.parametrize("slope", [1 / 41, 0.498, 127 / 255, 2.0])
def test_ids_under_a_scale_slope_are_the_classes_that_were_stored(tmp_path, slope) -> None:
    ids = 2 * IDS if slope == 2.0 else IDS
    path = scaled_label(tmp_path / "a.nii.gz", np.rint(ids / slope).astype(np.uint8), slope)
    label = read_picture(path)
    assert np.array_equal(ids_of_file(label)[0], ids)
    edited = ids.copy()
    edited[0, 0] = 4
    write_label(edited[None], label, tmp_path / "b.nii.gz")
    after = read_picture(tmp_path / "b.nii.gz")
    assert np.array_equal(ids_of_file(after)[0], edited) and after.slope == label.slope
    assert np.array_equal(after.stored[0][edited == ids], label.stored[0][edited == ids])


def test_what_is_between_two_classes_under_a_coarse_slope_is_refused(tmp_path) -> None:
    label = read_picture(scaled_label(tmp_path / "a.nii.gz", np.full((3, 3, 3), 3, np.uint8), 0.498))
    with pytest.raises(ImageFileError, match=r"27 voxels that are no whole number, e.g. 1.494"):
        ids_of_file(label)


@pytest.mark.parametrize(
    ("stored", "ids"),
    [
        (np.float32(3 - 1e-6), 3),
        (np.float32(9.0009), 9),
        (np.int32(614454277), 614454277),
        (np.uint32(4294967295), 4294967295),
        (np.int64(2**53 + 1), 2**53 + 1),
    ],
)
def test_ids_are_the_integers_they_are_and_come_back_with_the_same_bits(tmp_path, stored, ids) -> None:
    array = np.zeros((3, 3, 3), stored.dtype)
    array[1] = stored
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nib.save(nib.Nifti1Image(array, np.eye(4), dtype=stored.dtype), tmp_path / "a.nii.gz")
    label = read_picture(tmp_path / "a.nii.gz")
    values = ids_of_file(label)
    assert values.dtype == np.int64 and np.unique(values).tolist() == [0, ids]
    values[0, 0, 0, 0] = 1
    write_label(values, label, tmp_path / "b.nii.gz")
    after = read_picture(tmp_path / "b.nii.gz").stored
    assert after[0, 0, 0, 0] == 1 and after.dtype == label.stored.dtype
    assert np.array_equal(after.flat[1:], label.stored.flat[1:])


def test_a_fractional_label_is_refused_with_the_number_of_voxels(tmp_path) -> None:
    array = np.zeros((4, 4, 4), np.float32)
    array[0, :3, 0] = 0.5
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ImageFileError, match=r"a\.nii\.gz: the label has 3 voxels that are no whole number, e\.g\. 0\.5; .*lazy=False"):
        ids_of_file(read_picture(tmp_path / "a.nii.gz"))


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 257), (np.uint8, -1), (np.int16, 40000), (np.float32, 2**24 + 1)])
def test_an_id_that_the_type_of_the_file_cannot_hold_is_refused(tmp_path, dtype, value) -> None:
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), dtype), np.eye(4)), tmp_path / "a.nii.gz")
    label = read_picture(tmp_path / "a.nii.gz")
    with pytest.raises(ImageFileError, match=f"of type {np.dtype(dtype)} cannot hold class id {value}"):
        require_storable(value, label)
    with pytest.raises(ImageFileError, match="cannot hold class id"):
        write_label(np.full((1, 3, 3, 3), value, np.int64), label, tmp_path / "b.nii.gz")
    assert not (tmp_path / "b.nii.gz").exists()
    require_storable(100, label)


def test_an_id_that_a_scaling_cannot_hold_is_refused(tmp_path) -> None:
    label = read_picture(scaled_label(tmp_path / "a.nii.gz", np.zeros((3, 3, 3), np.uint8), 1 / 41))
    require_storable(6, label)
    with pytest.raises(ImageFileError, match=r"with scale slope 0.0243902 and intercept 0 cannot hold class id 7"):
        require_storable(7, label)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".png"])
def test_other_formats_keep_their_ids(tmp_path, suffix) -> None:
    ids = IDS[:, :, 0] if suffix == ".png" else IDS
    if suffix == ".png":
        Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "a.png")
    else:
        itk.imwrite(itk.image_from_array(ids.T.astype(np.uint8).copy()), str(tmp_path / f"a{suffix}"))
    label = read_picture(tmp_path / f"a{suffix}")
    assert np.array_equal(ids_of_file(label)[0], ids)
    write_label(ids[None] + 1, label, tmp_path / f"b{suffix}")
    assert np.array_equal(ids_of_file(read_picture(tmp_path / f"b{suffix}"))[0], ids + 1)
