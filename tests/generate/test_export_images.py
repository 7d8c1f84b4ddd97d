from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_diffaug.generate.export_cases import ExportError
from monai_diffaug.generate.export_images import layout_of, read_channels, write_channels, write_nifti_array
from tests.generate.run_folders import AFFINE, save


def test_layouts_by_the_header(tmp_path):
    rng = np.random.RandomState(0)
    save(rng.randint(0, 255, (8, 6), dtype=np.uint8), tmp_path / "grey.png")
    save(rng.randint(0, 255, (8, 6, 3), dtype=np.uint8), tmp_path / "rgb.png")
    save(np.zeros((8, 6, 4), np.int16), tmp_path / "scan.nii.gz")
    save(np.zeros((8, 6, 4, 2), np.int16), tmp_path / "two.nii.gz")
    Image.fromarray(rng.randint(0, 255, (8, 6), dtype=np.uint8)).convert("P").save(tmp_path / "palette.png")
    names = ("grey.png", "rgb.png", "palette.png", "scan.nii.gz", "two.nii.gz")
    layouts = [(layout.ending, layout.channels, layout.is_plain) for name in names if (layout := layout_of([tmp_path / name]))]
    assert layouts == [(".png", 1, True), (".png", 3, True), (".png", 3, False), (".nii.gz", 1, True), (".nii.gz", 2, False)]
    assert layout_of([tmp_path / "grey.png", tmp_path / "grey.png"]).channels == 2
    with pytest.raises(ExportError, match="cannot be channels of one image"):
        layout_of([tmp_path / "grey.png", tmp_path / "scan.nii.gz"])


def test_channels_of_one_nifti_file_become_files_with_its_affine(tmp_path):
    values = np.random.RandomState(0).randint(-900, 900, (8, 6, 4, 3)).astype(np.int16)
    save(values, tmp_path / "three.nii.gz")
    paths = write_channels([tmp_path / "three.nii.gz"], layout_of([tmp_path / "three.nii.gz"]), tmp_path / "case")
    assert [path.name for path in paths] == ["case_0000.nii.gz", "case_0001.nii.gz", "case_0002.nii.gz"]
    for k, path in enumerate(paths):
        image = nib.load(path)
        assert np.array_equal(np.asarray(image.dataobj), values[..., k]) and np.array_equal(image.affine, AFFINE)


def test_scaled_voxels_keep_their_values(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 4, 3), np.int16), AFFINE)
    image.header.set_slope_inter(0.5, 10)
    values = np.random.RandomState(0).randint(0, 50, (4, 4, 3)) * 0.5 + 10
    nib.save(nib.Nifti1Image(values, AFFINE, image.header), tmp_path / "scaled.nii.gz")
    read = np.asarray(nib.load(tmp_path / "scaled.nii.gz").dataobj)
    (path,) = write_channels([tmp_path / "scaled.nii.gz"], layout_of([tmp_path / "scaled.nii.gz"]), tmp_path / "case")
    assert np.array_equal(np.asarray(nib.load(path).dataobj), read)
    write_nifti_array(read_channels([tmp_path / "scaled.nii.gz"]), tmp_path / "as_array.nii.gz")
    assert np.allclose(np.asarray(nib.load(tmp_path / "as_array.nii.gz").dataobj), read)


def test_a_picture_becomes_a_volume_of_one_slice_with_x_first(tmp_path):
    rgb = np.random.RandomState(0).randint(0, 255, (8, 6, 3), dtype=np.uint8)
    save(rgb, tmp_path / "rgb.png")
    write_nifti_array(read_channels([tmp_path / "rgb.png"]), tmp_path / "rgb.nii.gz")
    volume = np.asarray(nib.load(tmp_path / "rgb.nii.gz").dataobj)
    assert volume.shape == (6, 8, 1, 3) and np.array_equal(volume[:, :, 0].transpose(1, 0, 2), rgb)


def test_a_picture_turned_by_its_orientation_tag_is_written_upright(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 255, (8, 6), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    layout = layout_of([tmp_path / "turned.png"])
    (path,) = write_channels([tmp_path / "turned.png"], layout, tmp_path / "case")
    assert not layout.is_plain and np.array(Image.open(path)).shape == (6, 8)


def test_channels_on_different_grids_are_refused(tmp_path):
    save(np.zeros((8, 6, 4), np.int16), tmp_path / "a.nii.gz")
    save(np.zeros((8, 6, 5), np.int16), tmp_path / "b.nii.gz")
    with pytest.raises(ExportError, match="resample them to one grid"):
        read_channels([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"])
