from __future__ import annotations

import os
import shutil
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.files.image_file import (
    ImageFileError,
    output_suffix,
    read_picture,
    require_same_grid,
    stem_of,
    write_picture,
)

OBLIQUE = np.array([[0.0, 0, 3, -20], [-0.9, 0.1, 0, 40], [0.1, 0.9, 0, -7], [0, 0, 0, 1]])


@pytest.fixture
def volumes(real_data: Path) -> Path:
    """Folder of real volumes."""
    return real_data / "volumes"


def edited(picture) -> tuple[np.ndarray, np.ndarray]:
    """Values with one corner block raised by 10.6, and the mask of the block."""
    values = picture.values.copy()
    where = np.zeros(values.shape, bool)
    where[(slice(None), *(slice(0, 3),) * len(picture.shape))] = True
    values[where] += 10.6
    return values, where


@pytest.mark.parametrize("dtype", ["int16", "uint8", "int32", "float32", "float64", ">i2"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_keeps_header_and_every_untouched_voxel(tmp_path, dtype, suffix):
    array = np.random.RandomState(0).randint(0, 200, (6, 7, 5)).astype(dtype)
    image = nib.Nifti1Image(array.astype(np.dtype(dtype).newbyteorder("=")), OBLIQUE)
    image.set_data_dtype(np.dtype(dtype).newbyteorder("="))
    if dtype == ">i2":
        image = nib.Nifti1Image(array, OBLIQUE, nib.Nifti1Header(endianness=">"))
        image.set_data_dtype(np.int16)
    image.set_qform(OBLIQUE, 2)
    image.set_sform(OBLIQUE, 4)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"kept"
    nib.save(image, tmp_path / f"a{suffix}")
    picture = read_picture(tmp_path / f"a{suffix}")
    values, where = edited(picture)
    write_picture(values, picture, tmp_path / f"b{suffix}")
    result, before = nib.load(tmp_path / f"b{suffix}"), nib.load(tmp_path / f"a{suffix}")
    for field in ("qform_code", "sform_code", "xyzt_units", "descrip", "datatype", "pixdim"):
        assert np.array_equal(result.header[field], before.header[field]), field
    assert np.array_equal(result.affine, before.affine)
    voxels = np.asarray(result.dataobj)
    assert np.array_equal(voxels[~where[0]], np.asarray(before.dataobj)[~where[0]])
    expected = array[where[0]].astype(float) + 10.6
    if np.dtype(dtype).kind in "iu":
        expected = np.rint(expected).clip(None, np.iinfo(dtype).max)
    assert np.allclose(voxels[where[0]].astype(float), expected, atol=1e-4)


def test_a_scaled_nifti_keeps_its_slope_and_the_stored_bits(tmp_path):
    array = np.random.RandomState(0).randint(-1000, 1000, (6, 7, 5)).astype(np.int16)
    image = nib.Nifti1Image(array, OBLIQUE)
    image.header.set_slope_inter(0.37, -12.5)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
    from monai_diffaug.files.image_file import _write_unscaled

    _write_unscaled(image, array, tmp_path / "a.nii.gz")
    picture = read_picture(tmp_path / "a.nii.gz")
    assert picture.slope == pytest.approx(0.37) and np.array_equal(picture.stored[0], array)
    values, where = edited(picture)
    write_picture(values, picture, tmp_path / "b.nii.gz")
    result = nib.load(tmp_path / "b.nii.gz")
    assert result.dataobj.slope == picture.slope and result.dataobj.inter == picture.inter
    assert result.header.extensions[0].get_content().startswith(b"kept")
    assert np.array_equal(np.asarray(result.dataobj.get_unscaled())[~where[0]], array[~where[0]])
    assert np.allclose(np.asarray(result.dataobj)[where[0]], values[where], atol=0.37 / 2 + 1e-4)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
def test_itk_formats_keep_type_and_geometry(tmp_path, suffix, dtype):
    image = itk.image_from_array(np.random.RandomState(0).randint(0, 200, (5, 7, 6)).astype(dtype))
    image.SetSpacing([0.5, 0.7, 3.0])
    image.SetOrigin([3.0, -4.0, 9.0])
    image.SetDirection(itk.matrix_from_array(np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])))
    itk.imwrite(image, str(tmp_path / f"a{suffix}"))
    picture = read_picture(tmp_path / f"a{suffix}")
    assert picture.shape == (6, 7, 5)
    values, where = edited(picture)
    write_picture(values, picture, tmp_path / f"b{suffix}")
    written = read_picture(tmp_path / f"b{suffix}")
    assert written.stored.dtype == picture.stored.dtype
    assert np.allclose(written.affine, picture.affine)
    assert np.array_equal(written.stored[~where], picture.stored[~where])
    assert not np.array_equal(written.stored[where], picture.stored[where])


def test_a_voxel_has_the_same_position_by_itk_and_nibabel(tmp_path):
    array = np.random.RandomState(0).randint(0, 99, (4, 5, 6)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 3, 4, 1])), tmp_path / "a.nii.gz")
    itk.imwrite(itk.imread(str(tmp_path / "a.nii.gz")), str(tmp_path / "a.mha"))
    by_nibabel, by_itk = read_picture(tmp_path / "a.nii.gz"), read_picture(tmp_path / "a.mha")
    require_same_grid(by_nibabel, by_itk, "mask")
    assert np.array_equal(by_nibabel.stored, by_itk.stored)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_png_keeps_its_type_and_untouched_pixels(tmp_path, mode):
    shape = (9, 8, 3) if mode == "RGB" else (9, 8)
    array = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint16 if mode == "I;16" else np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    values, where = edited(picture)
    write_picture(values, picture, tmp_path / "b.png")
    written = read_picture(tmp_path / "b.png")
    assert written.stored.dtype == array.dtype
    assert np.array_equal(written.stored[~where], picture.stored[~where])
    limit = np.iinfo(array.dtype).max
    assert np.array_equal(written.stored[where], np.rint(picture.stored[where] + 10.6).clip(0, limit))


def test_jpeg_is_written_as_png(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    assert output_suffix(tmp_path / "a.jpg") == ".png"


@pytest.mark.parametrize("name", ["spine_t2.nii.gz", "body_ct_3mm.nii.gz", "body_ct.nii.gz"])
def test_real_volumes_come_back_bit_identical_where_unchanged(volumes, tmp_path, name):
    picture = read_picture(volumes / name)
    values, where = edited(picture)
    write_picture(values, picture, tmp_path / "b.nii.gz")
    before, after = nib.load(volumes / name), nib.load(tmp_path / "b.nii.gz")
    assert after.get_data_dtype() == before.get_data_dtype() and nib.aff2axcodes(after.affine) == nib.aff2axcodes(before.affine)
    assert np.array_equal(np.asarray(after.dataobj)[~where[0]], np.asarray(before.dataobj)[~where[0]])
    assert np.array_equal(np.asarray(after.dataobj)[where[0]], np.rint(values[where]))


def test_a_dicom_series_is_read_in_hu_with_its_affine_and_written_as_nifti(volumes, tmp_path):
    from monai.transforms import LoadImage

    picture = read_picture(volumes / "ct_dicom_series")
    by_monai = LoadImage(image_only=True, reader="ITKReader")(str(volumes / "ct_dicom_series"))
    assert picture.shape == tuple(by_monai.shape)
    assert np.allclose(picture.affine, np.asarray(by_monai.affine), atol=1e-4)
    assert np.array_equal(picture.values[0], by_monai.numpy())
    assert output_suffix(picture.path) == ".nii.gz" and stem_of(picture.path) == "ct_dicom_series"
    write_picture(picture.stored, picture, tmp_path / "b.nii.gz")
    assert np.array_equal(read_picture(tmp_path / "b.nii.gz").stored, picture.stored)
    assert np.allclose(nib.load(tmp_path / "b.nii.gz").affine, picture.affine, atol=1e-4)


def test_a_dicom_series_with_a_gap_is_refused(volumes, tmp_path):
    series = sorted((volumes / "ct_dicom_series").iterdir())
    by_height = sorted(series, key=lambda file: float(dict(itk.imread(str(file), itk.F))["0020|0032"].split("\\")[2]))
    for i in (0, 1, 3, 4):
        shutil.copy(by_height[i], tmp_path)
    with pytest.raises(ImageFileError, match="missing or unevenly spaced"):
        read_picture(tmp_path)


def test_values_on_another_grid_are_not_written(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(GridMismatchError):
        write_picture(np.zeros((1, 8, 9)), read_picture(tmp_path / "a.png"), tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_the_same_shape_with_another_affine_is_another_grid(tmp_path):
    for name, shift in (("a", 0), ("b", 5)):
        affine = np.eye(4)
        affine[0, 3] = shift
        nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), affine), tmp_path / f"{name}.nii.gz")
    with pytest.raises(GridMismatchError, match=r"5 mm.*ResampleToMatch"):
        require_same_grid(read_picture(tmp_path / "a.nii.gz"), read_picture(tmp_path / "b.nii.gz"), "mask")


def test_trailing_single_dimensions_are_kept_in_the_file(tmp_path):
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5, 1), np.eye(4)), tmp_path / "a.nii.gz")
    picture = read_picture(tmp_path / "a.nii.gz")
    assert picture.shape == (3, 4, 5)
    write_picture(picture.stored, picture, tmp_path / "b.nii.gz")
    assert nib.load(tmp_path / "b.nii.gz").shape == (3, 4, 5, 1)


def test_a_folder_without_dicom_is_refused_and_itk_prints_nothing(tmp_path, capfd):
    with pytest.raises(ImageFileError, match="no DICOM series"):
        read_picture(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert itk.Object.GetGlobalWarningDisplay()


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.png"])
def test_a_file_without_read_permission_is_not_called_corrupt(tmp_path, monkeypatch, name):
    (tmp_path / name).touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ImageFileError, match=f"{name}: no right to read it"):
        read_picture(tmp_path / name)
