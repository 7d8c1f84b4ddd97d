"""Faults of letter B, readers: training and editing read the same files to the same voxels, ids and affine, or both refuse them."""

from __future__ import annotations

from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_diffaug.files.image_file import read_picture
from monai_diffaug.files.picture import ImageFileError, require_same_grid
from monai_diffaug.masks.label_file import ids_of_file
from monai_diffaug.training.datalist import ANY_VALUE, Entry
from monai_diffaug.training.read_entry import read_entry

SHAPE = (12, 10, 6)
VOLUME = np.random.RandomState(0).randint(-900, 900, SHAPE).astype(np.int16)
WHERE = np.zeros(SHAPE, np.uint8)
WHERE[2:6, 3:8, 2:4] = 2
PICTURE = np.random.RandomState(1).randint(0, 256, (14, 9, 3)).astype(np.uint8)


def nifti(path: Path, array: np.ndarray, affine: np.ndarray, slope: float = 1.0, pixdim: float | None = None) -> Path:
    image = nib.Nifti1Image(array, affine)
    if pixdim is not None:
        image.header["pixdim"][1:4] = pixdim
    if slope != 1.0:
        from monai_diffaug.files.nifti_volume import write_unscaled

        image.header.set_slope_inter(slope, 0)
        write_unscaled(image, array, path)
    else:
        nib.save(image, path)
    return path


def rounded_sform(folder: Path) -> tuple[Path, Path]:
    """An sform of .7001 mm next to a pixdim of .7: MONAI drops the affine, and left becomes right."""
    turned = np.array([[-0.7001, 0, 0, 30], [0, 0.7001, 0, -20], [0, 0, 0.7001, 5], [0, 0, 0, 1]])
    exact = turned.copy()
    exact[:3, :3] /= 0.7001 / 0.7
    return nifti(folder / "i.nii.gz", VOLUME, turned, pixdim=0.7), nifti(folder / "l.nii.gz", WHERE, exact)


def scaled_label(folder: Path) -> tuple[Path, Path]:
    return nifti(folder / "i.nii.gz", VOLUME, np.eye(4), slope=0.37), nifti(folder / "l.nii.gz", WHERE * 2, np.eye(4), slope=0.498)


def almost_whole_label(folder: Path) -> tuple[Path, Path]:
    return nifti(folder / "i.nii", VOLUME, np.eye(4)), nifti(folder / "l.nii", WHERE.astype(np.float32) * np.float32(1 - 3e-7), np.eye(4))


def metaimage(folder: Path) -> tuple[Path, Path]:
    for name, array in (("i.mhd", VOLUME), ("l.mha", WHERE)):
        image = itk.image_from_array(np.ascontiguousarray(array.T))
        image.SetSpacing([0.5, 0.7, 3.0])
        itk.imwrite(image, str(folder / name))
    return folder / "i.mhd", folder / "l.mha"


def turned_picture(folder: Path) -> tuple[Path, Path]:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(folder / "i.jpg", exif=exif, quality=100)
    Image.fromarray((PICTURE[..., 0] > 128).astype(np.uint8).T.copy()).save(folder / "l.bmp")
    return folder / "i.jpg", folder / "l.bmp"


def float_tiff(folder: Path) -> tuple[Path, Path]:
    Image.fromarray(PICTURE[..., 0].astype(np.float32) / 7).save(folder / "i.tif")
    Image.fromarray((PICTURE[..., 0] > 128).astype(np.uint8)).save(folder / "l.tiff")
    return folder / "i.tif", folder / "l.tiff"


READABLE = [rounded_sform, scaled_label, almost_whole_label, metaimage, turned_picture, float_tiff]


def entry_of(image: Path, label: Path | None) -> Entry:
    return Entry(image, label, {ANY_VALUE: "glioma"} if label else {}, "mri", "brain")


@pytest.mark.parametrize("write", READABLE)
def test_training_and_editing_see_the_same_voxels_ids_and_affine(tmp_path, write) -> None:
    image, label = write(tmp_path)
    picture, region = read_picture(image), read_picture(label, layers=True)
    require_same_grid(picture, region, "label")
    content = read_entry(entry_of(image, label))
    assert np.array_equal(content.image.numpy().astype(np.float32), picture.values)
    assert np.array_equal(content.ids.numpy(), ids_of_file(region)) and bool(content.ids.any())
    if content.affine is not None:
        assert np.array_equal(content.affine, picture.affine)


def test_a_rounded_sform_keeps_its_left_and_right(tmp_path) -> None:
    image, label = rounded_sform(tmp_path)
    content = read_entry(entry_of(image, label))
    assert content.affine is not None and np.allclose(content.affine, nib.load(image).affine, atol=1e-6) and content.affine[0, 0] < 0


def test_a_series_of_slices_is_read_by_training_as_by_editing(tmp_path, real_data) -> None:
    series = real_data / "volumes/ct_dicom_series"
    picture, content = read_picture(series), read_entry(entry_of(series, None))
    assert np.array_equal(content.image.numpy().astype(np.float32), picture.values) and np.array_equal(content.affine, picture.affine)
    one = sorted(series.iterdir())[0]
    assert read_entry(entry_of(one, None)).image.shape[-1] == 1 and read_picture(one).shape == (*picture.shape[:2], 1)


def fractional_label(folder: Path) -> tuple[Path, Path]:
    return nifti(folder / "i.nii", VOLUME, np.eye(4)), nifti(folder / "l.nii", WHERE.astype(np.float32) / 4, np.eye(4))


def colour_of_16_bits(suffix: str) -> object:
    def write(folder: Path) -> tuple[Path, None]:
        image = itk.image_from_array((PICTURE.astype(np.uint16) * 257), is_vector=True)
        itk.imwrite(image, str(folder / f"i{suffix}"))
        return folder / f"i{suffix}", None

    return write


def pages(folder: Path) -> tuple[Path, None]:
    sheets = [Image.fromarray(PICTURE[..., k]) for k in range(3)]
    sheets[0].save(folder / "i.tif", save_all=True, append_images=sheets[1:])
    return folder / "i.tif", None


def series_with_a_gap(folder: Path) -> tuple[Path, None]:
    import pydicom
    from pydicom.data import get_testdata_file

    for k in (0, 1, 3, 4):
        piece = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        piece.ImagePositionPatient, piece.SOPInstanceUID = [0, 0, 3 * k], f"1.2.{k}"
        (folder / "series").mkdir(exist_ok=True)
        piece.save_as(folder / f"series/{k}.dcm")
    return folder / "series", None


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (fractional_label, "no whole number, e.g. 0.5"),
        (colour_of_16_bits(".png"), "16 bits per channel"),
        (colour_of_16_bits(".tif"), "16 bits per channel"),
        (pages, "3 pages"),
        (series_with_a_gap, "missing or unevenly spaced"),
    ],
)
def test_training_refuses_what_editing_refuses(tmp_path, write, reason) -> None:
    image, label = write(tmp_path)
    with pytest.raises(ImageFileError, match=reason):
        read_entry(entry_of(image, label))
    with pytest.raises(ImageFileError, match=reason):
        ids_of_file(read_picture(label or image))
