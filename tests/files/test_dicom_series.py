from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from monai_diffaug.files.image_file import read_picture, write_picture
from monai_diffaug.files.picture import ImageFileError, require_same_grid

SERIES = generate_uid()
ROWS, COLUMNS = 12, 16
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def write_slice(path: Path, z_mm: float = 0.0, pixels: np.ndarray | None = None, **tags: Any) -> np.ndarray:
    """One CT slice; ``tags`` are DICOM keywords that replace the usual ones, None removes one. Returns its stored numbers."""
    if pixels is None:
        pixels = np.random.RandomState(int(abs(z_mm) * 10)).randint(0, 3000, (ROWS, COLUMNS))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID, data.SeriesDescription = "CT", SERIES, SERIES, "thorax"
    data.SeriesNumber, data.FrameOfReferenceUID = 4, SERIES
    data.ImagePositionPatient, data.ImageOrientationPatient = [-20.0, -30.0, float(z_mm)], list(AXIAL)
    data.PixelSpacing, data.SliceThickness = [0.7, 0.5], 3.0
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape[:2]
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = pixels.astype(np.uint16).tobytes()
    for keyword, value in tags.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    data.save_as(path, enforce_file_format=True)
    return pixels


def write_series(folder: Path, heights_mm: tuple[float, ...] = (0.0, 3.0, 6.0, 9.0), **tags: Any) -> np.ndarray:
    """Slices in an order that is not that of their heights; returns (columns, rows, slices) in the order of the heights."""
    names = np.random.RandomState(0).permutation(len(heights_mm))
    pixels = [write_slice(folder / f"{name}.dcm", z, **tags).T for name, z in zip(names, heights_mm, strict=True)]
    return np.stack(pixels, -1)


def test_slices_are_sorted_by_position_and_the_affine_is_that_of_the_standard(tmp_path) -> None:
    stored = write_series(tmp_path)
    picture = read_picture(tmp_path)
    assert np.array_equal(picture.stored[0], stored) and picture.suffix == ""
    lps = np.array([[0.5, 0, 0, -20], [0, 0.7, 0, -30], [0, 0, 3, 0], [0, 0, 0, 1]])
    assert np.allclose(picture.affine, np.diag([-1, -1, 1, 1]) @ lps)


def test_a_tilted_gantry_gives_a_sheared_affine_and_a_mask_with_it_is_on_the_grid(tmp_path) -> None:
    tilt = np.deg2rad(20)
    write_series(tmp_path, ImageOrientationPatient=[1, 0, 0, 0, float(np.cos(tilt)), float(-np.sin(tilt))])
    picture = read_picture(tmp_path)
    assert picture.affine is not None and np.allclose(picture.affine[:3, 2], [0, 0, 3])
    expected = np.diag([-1, -1, 1, 1]) @ np.array(
        [[0.5, 0, 0, -20], [0, 0.7 * np.cos(tilt), 0, -30], [0, -0.7 * np.sin(tilt), 3, 0], [0, 0, 0, 1]]
    )
    assert np.allclose(picture.affine, expected)
    nib.save(nib.Nifti1Image(np.ones(picture.shape, np.uint8), expected), tmp_path / "mask.nii.gz")
    require_same_grid(picture, read_picture(tmp_path / "mask.nii.gz"), "mask")
    write_picture(picture.stored, picture, tmp_path / "result.nii.gz")
    assert np.allclose(nib.load(tmp_path / "result.nii.gz").affine, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "others"),
    [((1, 0), (0.0015, 0)), ((1, 0), (1, -1024)), ((1, -1024), (1, 0)), ((0.5, 0), (1, 0)), ((2, -10), (0.25, 3.5)), ((1, 0), (20, 0))],
)
def test_each_slice_has_its_own_slope_and_intercept(tmp_path, first, others) -> None:
    expected = []
    for k in range(4):
        slope, intercept = first if k == 0 else others
        pixels = np.random.RandomState(k).randint(0, 65536, (ROWS, COLUMNS))
        write_slice(tmp_path / f"{k}.dcm", 3.0 * k, pixels, RescaleSlope=slope, RescaleIntercept=intercept)
        expected.append(pixels.T * slope + intercept)
    assert np.allclose(read_picture(tmp_path).values[0], np.stack(expected, -1), rtol=1e-6, atol=1e-3)


def test_signed_and_unsigned_slices_keep_their_values(tmp_path) -> None:
    signed = np.full((ROWS, COLUMNS), -1000, np.int16)
    write_slice(tmp_path / "0.dcm", 0.0, np.full((ROWS, COLUMNS), 40000))
    write_slice(tmp_path / "1.dcm", 3.0, signed.view(np.uint16), PixelRepresentation=1)
    values = read_picture(tmp_path).values[0]
    assert np.unique(values[..., 0]).tolist() == [40000] and np.unique(values[..., 1]).tolist() == [-1000]


@pytest.mark.parametrize("colours", ["RGB", "YBR_FULL", "YBR_FULL_422"])
def test_colour_is_refused(tmp_path, colours) -> None:
    pixels = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    if colours == "YBR_FULL_422":
        tags["Rows"] = ROWS
    write_slice(tmp_path / "0.dcm", 0.0, pixels, PhotometricInterpretation=colours, PixelData=pixels.tobytes(), **tags)
    with pytest.raises(ImageFileError, match=rf"0\.dcm: (a colour DICOM file \({colours}\); save it as PNG|a DICOM file without an image)"):
        read_picture(tmp_path)


def test_a_palette_is_refused(tmp_path) -> None:
    pixels = np.zeros((ROWS, COLUMNS), np.uint8)
    table = np.arange(256, dtype=np.uint16).tobytes()
    palette: dict[str, Any] = {f"{colour}PaletteColorLookupTableData": table for colour in ("Red", "Green", "Blue")}
    palette |= {f"{colour}PaletteColorLookupTableDescriptor": [256, 0, 16] for colour in ("Red", "Green", "Blue")}
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": pixels.tobytes()}
    write_slice(tmp_path / "0.dcm", 0.0, pixels, PhotometricInterpretation="PALETTE COLOR", **bits, **palette)
    with pytest.raises(ImageFileError, match=r"a colour DICOM file \(PALETTE COLOR\)"):
        read_picture(tmp_path)


def test_several_series_are_refused_with_their_list(tmp_path) -> None:
    write_series(tmp_path)
    write_slice(tmp_path / "scout.dcm", 0.0, SeriesInstanceUID=generate_uid(), SeriesNumber=1, SeriesDescription="scout")
    with pytest.raises(ImageFileError, match=r"2 DICOM series, 4 'thorax' \(4 files, e\.g\. 0\.dcm\); 1 'scout' \(1 files, e\.g\. scout"):
        read_picture(tmp_path)


def test_a_series_whose_slice_thickness_changes_is_read_whole(tmp_path) -> None:
    write_series(tmp_path)
    write_slice(tmp_path / "last.dcm", 12.0, SliceThickness=1.5)
    assert read_picture(tmp_path).shape == (COLUMNS, ROWS, 5)


@pytest.mark.parametrize("heights", [(0.0, 3.0, 9.0), (0.0, 3.0, 3.5, 6.0)])
def test_missing_or_uneven_slices_are_refused(tmp_path, heights) -> None:
    write_series(tmp_path, heights)
    with pytest.raises(ImageFileError, match="missing or unevenly spaced"):
        read_picture(tmp_path)


def test_a_series_over_time_is_refused(tmp_path) -> None:
    for time in range(3):
        (tmp_path / "t").mkdir(exist_ok=True)
        for k in range(4):
            write_slice(tmp_path / "t" / f"{time}_{k}.dcm", 3.0 * k, InstanceNumber=4 * time + k)
    with pytest.raises(ImageFileError, match="8 of 12 slices are at the place of another one: .* a series over time"):
        read_picture(tmp_path / "t")


@pytest.mark.parametrize(
    "tags", [{"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, {"PixelSpacing": [0.7, 0.6]}], ids=["orientation", "spacing"]
)
def test_slices_of_another_stack_are_refused(tmp_path, tags) -> None:
    write_series(tmp_path)
    write_slice(tmp_path / "z.dcm", 12.0, **tags)
    with pytest.raises(ImageFileError, match=r"z\.dcm: another orientation or pixel spacing than 0\.dcm"):
        read_picture(tmp_path)


def test_slices_of_another_size_are_refused(tmp_path) -> None:
    write_series(tmp_path)
    write_slice(tmp_path / "z.dcm", 12.0, np.zeros((ROWS, COLUMNS + 2)))
    with pytest.raises(ImageFileError, match=rf"differ in size, 4 of {COLUMNS} x {ROWS}, 1 of {COLUMNS + 2} x {ROWS}"):
        read_picture(tmp_path)


def test_slices_without_a_position_are_refused(tmp_path) -> None:
    write_series(tmp_path, ImagePositionPatient=None)
    with pytest.raises(ImageFileError, match="without position, orientation or pixel spacing"):
        read_picture(tmp_path)


def test_a_single_slice_is_a_volume_of_one(tmp_path) -> None:
    stored = write_slice(tmp_path / "0.dcm", 5.0)
    picture = read_picture(tmp_path)
    assert picture.shape == (COLUMNS, ROWS, 1) and np.array_equal(picture.stored[0, ..., 0], stored.T)
    assert picture.affine is not None and np.allclose(np.diag(picture.affine), [-0.5, -0.7, 3, 1])


def test_an_x_ray_without_geometry_is_read(tmp_path) -> None:
    write_slice(tmp_path / "0.dcm", 0.0, ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None, SliceThickness=None)
    picture = read_picture(tmp_path)
    assert picture.shape == (COLUMNS, ROWS, 1) and picture.affine is not None and np.allclose(picture.affine, np.diag([-1, -1, 1, 1]))


def test_a_multi_frame_file_is_refused_by_name(tmp_path) -> None:
    frames = np.zeros((3 * ROWS, COLUMNS), np.uint16)
    write_slice(tmp_path / "0.dcm", 0.0, frames, Rows=ROWS, NumberOfFrames=3)
    with pytest.raises(ImageFileError, match=r"0\.dcm: a multi-frame DICOM file \(3 frames\).*dcm2niix"):
        read_picture(tmp_path)


def test_a_segmentation_is_refused_by_name(tmp_path) -> None:
    write_slice(tmp_path / "0.dcm", 0.0, Modality="SEG")
    with pytest.raises(ImageFileError, match=r"0\.dcm: a DICOM segmentation"):
        read_picture(tmp_path)


def test_files_that_are_no_dicom_are_skipped_but_not_damaged_slices(tmp_path) -> None:
    write_series(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "DICOMDIR").write_bytes(b"an index")
    assert read_picture(tmp_path).shape == (COLUMNS, ROWS, 4)
    (tmp_path / "4.dcm").write_bytes(b"")
    with pytest.raises(ImageFileError, match=r"4\.dcm: corrupt or truncated"):
        read_picture(tmp_path)


def test_a_slice_that_is_cut_is_refused(tmp_path, capfd) -> None:
    write_series(tmp_path)
    whole = (tmp_path / "2.dcm").read_bytes()
    (tmp_path / "2.dcm").write_bytes(whole[: len(whole) - 100])
    with pytest.raises(ImageFileError, match=r"2\.dcm: .*(truncated|without an image)"):
        read_picture(tmp_path)
    assert capfd.readouterr() == ("", "")
