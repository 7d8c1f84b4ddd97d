from __future__ import annotations

import os
import shutil
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageOps

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.files.image_file import read_picture, write_picture
from monai_diffaug.files.picture import ImageFileError, output_suffix, require_same_grid, stem_of

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
    from monai_diffaug.files.nifti_volume import write_unscaled

    write_unscaled(image, array, tmp_path / "a.nii.gz")
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


def sixteen_bit_colour_png(path: Path) -> None:
    """A PNG with 16 bits for each of three channels, which Pillow cannot write."""
    pixels = np.random.default_rng(0).integers(0, 65536, (9, 8, 3)).astype(np.uint16)
    itk.imwrite(itk.image_from_array(pixels, is_vector=True), str(path))


def test_a_colour_png_of_sixteen_bits_is_refused(tmp_path):
    sixteen_bit_colour_png(tmp_path / "a.png")
    with pytest.raises(ImageFileError, match=r"a\.png: a colour picture of 16 bits per channel"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_picture_with_an_orientation_tag_is_read_as_people_see_it(tmp_path, orientation, suffix):
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", exif=exif)
    with Image.open(tmp_path / f"a{suffix}") as opened:
        visible = np.asarray(ImageOps.exif_transpose(opened))
    picture = read_picture(tmp_path / f"a{suffix}")
    assert np.array_equal(picture.stored, visible.transpose(2, 0, 1))
    assert picture.shape == ((32, 48) if orientation < 5 else (48, 32))
    write_picture(picture.stored, picture, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as result:
        assert 0x0112 not in result.getexif() and np.array_equal(np.asarray(result), visible)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("dimension", [2, 3])
def test_itk_files_in_colour_keep_their_type_and_untouched_voxels(tmp_path, suffix, dtype, dimension):
    array = np.random.RandomState(0).randint(0, 200, (7, 6, 5, 3)[-dimension - 1 :]).astype(dtype)
    itk.imwrite(itk.image_from_array(array, is_vector=True), str(tmp_path / f"a{suffix}"))
    picture = read_picture(tmp_path / f"a{suffix}")
    assert picture.stored.dtype == dtype and np.array_equal(picture.stored, array.transpose(dimension, *reversed(range(dimension))))
    values, where = edited(picture)
    write_picture(values, picture, tmp_path / f"b{suffix}")
    written = read_picture(tmp_path / f"b{suffix}")
    assert written.stored.dtype == dtype and np.array_equal(written.stored[~where], picture.stored[~where])
    assert not np.array_equal(written.stored[where], picture.stored[where])


def write_layers(path: Path, layers: int) -> np.ndarray:
    """A segmentation as 3D Slicer writes it when segments overlap: the layers are the first axis of the file."""
    array = np.zeros((layers, 6, 5, 4), np.uint8)
    for layer in range(layers):
        array[layer, layer : layer + 3, 1, 2] = 1
    header = (
        f"NRRD0004\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\nsizes: {layers} 6 5 4\n"
        "space directions: none (1,0,0) (0,1,0) (0,0,2)\nkinds: list domain domain domain\nencoding: raw\nspace origin: (1,2,3)\n"
        "Segment0_Layer:=0\nSegment1_Layer:=1\n\n"
    )
    path.write_bytes(header.encode() + array.tobytes(order="F"))
    return array


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_the_layers_of_a_slicer_segmentation_are_read_for_a_mask(tmp_path, layers):
    array = write_layers(tmp_path / "a.seg.nrrd", layers)
    picture = read_picture(tmp_path / "a.seg.nrrd", layers=True)
    assert np.array_equal(picture.stored, array)
    assert picture.affine is not None and np.allclose(picture.affine[:3, 3], [-1, -2, 3])
    if layers != 3:
        with pytest.raises(ImageFileError, match=f"{layers} channels; grey"):
            read_picture(tmp_path / "a.seg.nrrd")


def test_itk_channels_of_an_unsupported_type_are_not_called_corrupt(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: int\ndimension: 3\nsizes: 3 4 4\nkinds: vector domain domain\nencoding: raw\nendian: little\n\n" + bytes(4 * 48)
    )
    with pytest.raises(ImageFileError, match=r"a\.nrrd: 3 channel\(s\) of type int cannot be read by ITK's Python package"):
        read_picture(tmp_path / "a.nrrd")


@pytest.mark.parametrize(("unit", "mm"), [("micron", 1e-3), ("meter", 1e3), ("mm", 1.0), ("unknown", 1.0)])
def test_the_affine_is_in_mm_whatever_the_unit_of_the_file(tmp_path, unit, mm):
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.diag([7.0, 7, 9, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    picture = read_picture(tmp_path / "a.nii.gz")
    assert np.allclose(picture.affine, np.diag([7 * mm, 7 * mm, 9 * mm, 1]))
    write_picture(picture.stored, picture, tmp_path / "b.nii.gz")
    after = nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(after.affine, image.affine) and after.header.get_xyzt_units()[0] == unit
    in_mm = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.diag([7 * mm, 7 * mm, 9 * mm, 1]))
    in_mm.header.set_xyzt_units("mm")
    nib.save(in_mm, tmp_path / "mask.nii.gz")
    require_same_grid(picture, read_picture(tmp_path / "mask.nii.gz"), "mask")


def test_a_rounded_sform_is_the_affine_and_a_label_with_the_exact_one_is_on_the_grid(tmp_path):
    for name, spacing in (("image", 0.7001), ("label", 0.7)):
        image = nib.Nifti1Image(np.zeros((512, 512, 3), np.uint8), np.diag([-spacing, spacing, 3, 1]))
        image.set_qform(np.diag([-0.7, 0.7, 3, 1]), 1)
        image.set_sform(image.affine, 1)
        nib.save(image, tmp_path / f"{name}.nii.gz")
    image, label = read_picture(tmp_path / "image.nii.gz"), read_picture(tmp_path / "label.nii.gz")
    assert image.affine is not None and np.allclose(image.affine[:2, :2], np.diag([-0.7001, 0.7001]), atol=1e-6)
    require_same_grid(image, label, "label")


def test_a_small_difference_per_voxel_that_adds_up_to_a_voxel_is_another_grid(tmp_path):
    for name, spacing in (("image", 0.7), ("label", 0.705)):
        nib.save(nib.Nifti1Image(np.zeros((512, 4, 3), np.uint8), np.diag([spacing, 1, 1, 1])), tmp_path / f"{name}.nii.gz")
    with pytest.raises(GridMismatchError, match=r"up to 2\.5\d mm away"):
        require_same_grid(read_picture(tmp_path / "image.nii.gz"), read_picture(tmp_path / "label.nii.gz"), "label")
