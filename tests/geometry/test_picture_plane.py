from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, PILReader
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Resize, ScaleIntensity, Transpose

from monai_diffaug import DiffusionLocalInpaint
from monai_diffaug.geometry.picture_plane import plane_of
from monai_diffaug.geometry.slices import from_slices, slab_of, slice_spacing_mm, to_slices

ROWS, COLUMNS = 40, 60


def picture() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 255, (ROWS, COLUMNS)).astype(np.uint8)


def written(folder: Path, suffix: str) -> Path:
    """The picture in a file that shows it upright: rows from the top, columns from the left."""
    file, pixels = folder / f"a{suffix}", picture()
    if suffix == ".dcm":
        import itk

        itk.imwrite(itk.image_view_from_array(pixels[None].astype(np.int16)), file)
    elif suffix in (".nii.gz", ".mha"):
        import itk

        image = itk.image_view_from_array(pixels)
        image.SetSpacing([0.5, 0.25])
        itk.imwrite(image, file)
    else:
        from PIL import Image

        Image.fromarray(pixels).save(file, **({"quality": 95} if suffix == ".jpg" else {}))
    return file


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".nii.gz", ".mha", ".dcm"])
@pytest.mark.parametrize("reader", [None, PILReader(reverse_indexing=False)])
def test_models_see_a_picture_upright_whoever_read_it(tmp_path: Path, suffix: str, reader: Any) -> None:
    image = Compose([LoadImage(reader=reader), EnsureChannelFirst()])(written(tmp_path, suffix))
    plane = plane_of(image, "axial")
    shown = to_slices(image.as_tensor(), plane)
    assert shown.shape == (1, 1, ROWS, COLUMNS)
    assert np.corrcoef(shown[0, 0].numpy().ravel(), picture().ravel())[0, 1] > 0.95
    assert torch.equal(from_slices(shown, plane), image.as_tensor())


def test_a_picture_that_was_resized_after_loading_is_still_known(tmp_path: Path) -> None:
    load = Compose([LoadImage(), EnsureChannelFirst(), Resize((32, 32))])
    lying = load(written(tmp_path, ".png"))
    assert plane_of(lying, "axial") is not None
    upright = Compose([LoadImage(reader=PILReader(reverse_indexing=False)), EnsureChannelFirst(), Resize((32, 32))])(tmp_path / "a.png")
    assert plane_of(upright, "axial") is None


@pytest.mark.parametrize("suffix", [".png", ".nii.gz"])
def test_a_picture_that_a_user_turned_upright_stays_so(tmp_path: Path, suffix: str) -> None:
    load = Compose([LoadImage(), EnsureChannelFirst(), Transpose((0, 2, 1))])
    image = load(written(tmp_path, suffix))
    assert image.shape == (1, ROWS, COLUMNS) and plane_of(image, "axial") is None


@pytest.mark.parametrize("colour", [False, True])
def test_a_square_picture_is_compared_with_its_file(tmp_path: Path, colour: bool) -> None:
    from PIL import Image

    pixels = np.kron(np.random.RandomState(1).randint(0, 200, (8, 8)), np.ones((8, 8))).astype(np.uint8)
    file = tmp_path / "square.png"
    Image.fromarray(np.stack([pixels, pixels // 2, pixels], -1) if colour else pixels).save(file)
    lying, upright = (
        Compose([LoadImage(reader=reader), EnsureChannelFirst(), Resize((48, 48)), ScaleIntensity()])(file)
        for reader in (None, PILReader(reverse_indexing=False))
    )
    assert plane_of(lying, "axial") is not None and plane_of(upright, "axial") is None
    edited = lying.clone()
    edited[:, 10:20, 20:40] = 0
    assert plane_of(edited, "axial") is not None
    assert plane_of(lying * 0, "axial") is None and plane_of(lying.flip(1), "axial") is None
    file.unlink()
    assert plane_of(lying, "axial") is None


def test_square_pictures_without_a_file_and_arrays_without_meta_data_count_as_upright() -> None:
    square = {"width": 8, "height": 8}
    for image in (
        np.zeros((1, 6, 8)),
        torch.zeros(1, 6, 8),
        MetaTensor(torch.zeros(1, 6, 8)),
        MetaTensor(torch.zeros(1, 8, 8), meta=square),
    ):
        assert plane_of(image, "axial") is None
    spaced = MetaTensor(torch.zeros(1, 6, 8), affine=torch.diag(torch.tensor([0.5, 2.0, 1.0, 1.0])))
    assert plane_of(spaced, "axial") is None
    with pytest.raises(ValueError, match="plane must be one of"):
        plane_of(square_volume(), "oblique")
    assert plane_of(square_volume(), "coronal").axes == (1, 2, 0)


def square_volume() -> MetaTensor:
    return MetaTensor(torch.zeros(1, 4, 4, 4))


def test_spacing_and_slab_of_a_picture_on_its_side() -> None:
    image = MetaTensor(torch.zeros(1, 60, 40), affine=torch.diag(torch.tensor([0.5, 0.25, 9.0, 1.0])), meta={"width": 60, "height": 40})
    plane = plane_of(image, "axial")
    assert slice_spacing_mm(image.affine, plane) == (1.0, 0.25, 0.5)
    mask = torch.zeros(1, 60, 40)
    assert slab_of(mask, plane).length == 0
    mask[:, 3, 4] = 1
    slab = slab_of(mask, plane)
    assert slab.length == 1 and slab.of(mask) is mask


def test_an_edit_of_a_picture_on_its_side_is_the_edit_of_the_upright_one_on_its_side(tmp_path: Path, random_inpainter: str) -> None:
    file = written(tmp_path, ".png")
    lying, upright = (
        Compose([LoadImage(reader=reader), EnsureChannelFirst()])(file) for reader in (None, PILReader(reverse_indexing=False))
    )
    mask = torch.zeros(1, ROWS, COLUMNS)
    mask[:, 10:22, 20:44] = 1
    paint = DiffusionLocalInpaint(random_inpainter, num_inference_steps=1, window=(0, 255))
    expected = paint.apply(upright, mask, "cyst", mask * 0, seed=3)
    edit = paint.apply(lying, mask.mT, "cyst", mask.mT * 0, seed=3)
    assert torch.equal(edit.image.as_tensor(), expected.image.as_tensor().mT) and edit.image.shape == lying.shape
    assert torch.equal(edit.label, expected.label.mT) and edit.record == expected.record
    assert torch.equal(paint.soft_region(lying, mask.mT), paint.soft_region(upright, mask).mT)
