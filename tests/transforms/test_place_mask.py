from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import binary_fill_holes
from scipy.ndimage import label as components

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.place_mask import PlaceMask, PlaceMaskd


def framed(size: tuple[int, ...] = (80, 96)) -> torch.Tensor:
    """Tissue in a black frame of 16 pixels."""
    image = torch.zeros(1, *size)
    image[:, 16:-16, 16:-16] = 100 + 20 * torch.rand(1, size[0] - 32, size[1] - 32, *size[2:], generator=torch.Generator().manual_seed(0))
    return image


def test_a_blob_lies_on_tissue_in_one_piece_and_repeats_with_its_seed() -> None:
    image = framed()
    places = set()
    for seed in range(20):
        mask = PlaceMask().apply(image, seed=seed)
        assert mask.dtype == torch.uint8 and mask.shape == image.shape and mask.any()
        assert components(mask[0].numpy())[1] == 1
        assert float((image[mask > 0] > 0).float().mean()) >= 0.95
        assert torch.equal(mask, PlaceMask().apply(image, seed=seed))
        places.add(tuple(mask[0].nonzero()[0].tolist()))
    assert len(places) > 10


def test_a_shape_from_the_bank_keeps_its_outline_up_to_mirroring_and_scale() -> None:
    shape = np.zeros((60, 60), np.uint8)
    shape[10:30, 10:16] = 1
    shape[24:30, 10:34] = 1  # an L of 20 x 24 pixels
    shape[50, 50] = 1  # a speck that is no part of it
    area = int(shape[:40].sum())
    for seed in range(5):
        mask = PlaceMask([shape], scale_range=(1.0, 1.0)).apply(framed(), seed=seed)[0].numpy()
        rows, columns = np.nonzero(mask)
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 24) and mask.sum() == area
        corners = [mask[y, x] for y in (rows.min(), rows.max()) for x in (columns.min(), columns.max())]
        assert sum(map(int, corners)) == 3


def test_a_bank_of_files_is_read_when_it_is_used_and_keeps_the_transform_small(tmp_path) -> None:
    from PIL import Image

    square = np.zeros((40, 40), np.uint8)
    square[5:15, 5:25] = 255
    Image.fromarray(square).save(tmp_path / "a.png")
    transform = PlaceMask([tmp_path / "a.png"], scale_range=(1.0, 1.0))
    assert len(pickle.dumps(transform)) < 10_000
    assert int(transform.apply(framed(), torch.ones(1, 80, 96), seed=1).sum()) == 200


def test_pictures_of_masks_are_read_upright_and_jpeg_noise_of_colour_ones_is_no_mask(tmp_path) -> None:
    from PIL import Image

    lying = np.zeros((40, 60), np.uint8)
    lying[5:15, 5:45] = 255
    Image.fromarray(lying).save(tmp_path / "grey.png")
    noisy = np.stack([lying] * 3, -1)
    noisy[20:, :, 0] = 6  # what the compression leaves around a mask
    Image.fromarray(noisy).save(tmp_path / "colour.png")
    for name in ("grey.png", "colour.png"):
        mask = PlaceMask([str(tmp_path / name)], scale_range=(1.0, 1.0)).apply(framed(), torch.ones(1, 80, 96), seed=1)[0].numpy()
        rows, columns = np.nonzero(mask)
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (10, 40)


def test_an_empty_mask_file_of_the_bank_is_named(tmp_path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "normal_07.png")
    names = [tmp_path / "normal_07.png"] * 3
    with pytest.raises(ValueError, match=r"3 of 4 masks of the bank are empty.*normal_07\.png, .*normal_07\.png, .*normal_07\.png"):
        PlaceMask([*names, np.ones((4, 4))])


def test_the_scale_of_a_shape_from_the_bank_lies_in_its_range() -> None:
    square = np.ones((20, 20), np.uint8)
    place, everywhere = PlaceMask([square], scale_range=(0.5, 1.5)), torch.ones(1, 80, 96)
    sides = [int(place.apply(framed(), everywhere, seed=seed).sum()) ** 0.5 for seed in range(40)]
    assert 9 <= min(sides) < 13 and 27 < max(sides) <= 31


def test_elastic_ellipses_and_shapes_of_ones_own_are_sources_too() -> None:
    areas = {}
    for name, shape in (("blob", "blob"), ("ellipse", "ellipse"), ("own", cross)):
        place = PlaceMask(shape=shape, size_range=(0.25, 0.25))
        masks = [place.apply(framed(), torch.ones(1, 80, 96), seed=seed)[0].numpy() for seed in range(4)]
        assert all(components(mask)[1] == 1 for mask in masks)
        areas[name] = [int(mask.sum()) for mask in masks]
        longest = [max(int(np.ptp(axis)) + 1 for axis in np.nonzero(mask)) for mask in masks]
        assert max(longest) <= 20 and min(longest) >= (12 if name == "blob" else 18)
    assert areas["own"] == [20 * 20 - 4 * 8 * 8] * 4 and areas["ellipse"] != areas["blob"]
    dictionary = PlaceMaskd("image", shape="ellipse", size_range=(0.25, 0.25)).set_random_state(0)
    assert dictionary({"image": framed()})["mask"].any() and len(pickle.dumps(PlaceMaskd("image", shape=cross))) < 10_000


def cross(rng: np.random.RandomState, side: int) -> np.ndarray:
    shape = np.zeros((side, side), bool)
    third = round(0.4 * side)
    shape[third : side - third] = shape[:, third : side - third] = True
    return shape


def test_a_shape_that_draws_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="must draw an outline"):
        PlaceMask(shape=lambda rng, side: np.zeros((side, side), bool)).apply(framed(), seed=1)


def test_a_volume_gets_an_ellipsoid_of_the_given_height_in_mm_in_the_anatomical_plane() -> None:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 2.0, 1.0, 1.0, 1.0  # stored S, R, A with slices of 2 mm
    image = MetaTensor(torch.rand(1, 20, 60, 60, generator=torch.Generator().manual_seed(1)) + 1, affine=torch.from_numpy(affine))
    mask = PlaceMask(depth_mm=12.0, size_range=(0.4, 0.5), tissue_above=0.0).apply(image, torch.ones(1, 20, 60, 60), seed=3)
    assert isinstance(mask, MetaTensor) and np.allclose(mask.affine, affine)
    areas = mask[0].sum((1, 2)).numpy()
    touched = np.flatnonzero(areas)
    assert 4 <= len(touched) <= 7 and np.array_equal(touched, np.arange(touched[0], touched[-1] + 1))
    assert areas.argmax() not in (touched[0], touched[-1])


def test_the_mask_stays_within_the_region_and_clear_of_the_label() -> None:
    image, organ, lesion = framed(), torch.zeros(1, 80, 96), torch.zeros(1, 80, 96)
    organ[:, 20:60, 20:50] = 2
    lesion[:, 20:60, 35:50] = 1
    transform = PlaceMaskd("image", region_key="organ", label_key="label", size_range=(0.1, 0.15)).set_random_state(0)
    for _ in range(5):
        mask = transform({"image": image, "organ": organ, "label": lesion})["mask"]
        assert mask.any() and not (mask[organ == 0]).any() and not (mask[lesion > 0]).any()


def test_without_a_place_the_mask_is_empty_and_the_inpainter_says_so(random_inpainter) -> None:
    sample = {"image": framed(), "organ": torch.zeros(1, 80, 96), "prompt": "x"}
    sample = PlaceMaskd("image", region_key="organ").set_random_state(0)(sample)
    assert not sample["mask"].any()
    edited = DiffusionLocalInpaintd("image", model=random_inpainter)(sample)
    assert edited["image_diffaug"]["reason"] == "empty mask" and edited["image"] is sample["image"]


def test_the_record_of_an_edit_says_why_a_mask_with_meta_data_is_empty(random_inpainter) -> None:
    for prob, reason in ((1.0, "empty mask: no free place was found: the region is empty"), (0.0, "empty mask: none was to be placed")):
        sample = {"image": MetaTensor(framed()), "organ": torch.zeros(1, 80, 96), "prompt": "x"}
        placed = PlaceMaskd("image", region_key="organ", prob=prob).set_random_state(0)(sample)
        edited = DiffusionLocalInpaintd("image", model=random_inpainter)(placed)
        assert edited["image_diffaug"]["reason"] == reason and set(sample["image"].meta) == set(placed["image"].meta)
        assert "empty_because" not in placed["image"].meta
        filled = {**placed, "mask": placed["mask"] + 1}
        assert DiffusionLocalInpaintd("image", model=random_inpainter, num_inference_steps=1)(filled)["image_diffaug"]["reason"] == ""


def test_not_triggered_is_an_empty_mask_after_the_same_draws() -> None:
    never, always = (PlaceMaskd("image", prob=p).set_random_state(5) for p in (0.0, 1.0))
    empty, drawn = (transform({"image": framed()})["mask"] for transform in (never, always))
    assert not empty.any() and drawn.any() and empty.shape == drawn.shape and empty.dtype == drawn.dtype
    assert never.R.rand() == always.R.rand()


def test_numpy_stays_numpy() -> None:
    mask = PlaceMask().apply(framed().numpy(), seed=1)
    assert isinstance(mask, np.ndarray) and mask.dtype == np.uint8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_range": (0.5, 0.2)}, "size_range"),
        ({"scale_range": (0.0, 1.0)}, "scale_range"),
        ({"depth_mm": -1.0}, "depth_mm"),
        ({"tissue_above": 1.0}, "tissue_above"),
        ({"plane": "oblique"}, "axial"),
        ({"bank": []}, "empty"),
        ({"shape": "star"}, "blob, ellipse"),
        ({"shape": 3}, "function"),
        ({"bank": [np.zeros((5, 5))]}, "empty"),
        ({"bank": [np.ones((2, 5, 5))]}, r"\(H, W\)"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        PlaceMask(**options)


def test_a_bank_that_is_one_path_is_told_to_be_a_list(tmp_path) -> None:
    for path in (tmp_path, str(tmp_path / "masks")):
        with pytest.raises(ValueError, match=r"list of masks or of files, got the path.*glob"):
            PlaceMask(path)


def test_an_axis_without_a_length_counts_as_one_of_1_mm() -> None:
    affine = torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0]))
    mask = PlaceMask().apply(MetaTensor(framed(), affine=affine), seed=3)
    assert torch.equal(mask.as_tensor(), PlaceMask().apply(framed(), seed=3)) and mask.any()
    with pytest.raises(ValueError, match="the affine has a zero axis"):
        PlaceMask().apply(MetaTensor(framed((80, 96, 4)), affine=affine), seed=3)


def test_a_region_on_another_grid_is_refused() -> None:
    with pytest.raises(GridMismatchError, match="region"):
        PlaceMask().apply(framed(), torch.ones(1, 8, 8), seed=1)
    with pytest.raises(KeyError, match="organ"):
        PlaceMaskd("image", region_key="organ")({"image": framed()})


def test_non_finite_voxels_are_named() -> None:
    image = framed()
    image[0, 40, 40] = torch.nan
    with pytest.raises(ValueError, match=r"non-finite voxels.*nan_to_num"):
        PlaceMask().apply(image, seed=0)


def speckled(depth: int = 0) -> torch.Tensor:
    """Tissue with single dark pixels all over, as in ultrasound, air in the lung, or vessels."""
    size = (96, 96, depth) if depth else (96, 96)
    generator = torch.Generator().manual_seed(3)
    return torch.where(torch.rand(1, *size, generator=generator) < 0.02, 0.0, 100.0 + torch.rand(1, *size, generator=generator))


@pytest.mark.parametrize("depth", [0, 9])
def test_dark_pixels_of_the_tissue_leave_no_holes_in_a_mask_and_no_crumbs_next_to_it(depth: int) -> None:
    place = PlaceMask(size_range=(0.3, 0.4), depth_mm=5.0)
    for seed in range(8):
        mask = place.apply(speckled(depth), seed=seed)[0].numpy()
        for each in mask.transpose(2, 0, 1) if depth else mask[None]:
            assert np.array_equal(binary_fill_holes(each), each) and components(each)[1] <= 1
        assert mask.any()


def test_what_is_labelled_stays_free_even_where_a_mask_encloses_it() -> None:
    label = torch.zeros(1, 96, 96)
    label[:, 5::10, 5::10] = 1
    enclosed = 0
    for seed in range(8):
        sample = PlaceMaskd("image", label_key="label", size_range=(0.4, 0.5)).set_random_state(seed)({"image": speckled(), "label": label})
        mask = sample["mask"][0].numpy().astype(bool)
        assert mask.any() and not mask[label[0].numpy() > 0].any()
        enclosed += int((binary_fill_holes(mask) & (label[0].numpy() > 0)).sum())
    assert enclosed > 0


def test_a_label_of_minus_one_is_neither_a_region_nor_a_free_place_nor_a_shape() -> None:
    ids = torch.full((1, 80, 96), -1.0)
    ids[:, 20:60, 20:50] = 2
    mask = PlaceMask(size_range=(0.1, 0.15)).apply(framed(), ids, seed=1)
    assert mask.any() and not mask[ids < 0].any()
    ids[ids > 0] = 0
    sample = PlaceMaskd("image", label_key="label", size_range=(0.1, 0.15)).set_random_state(0)({"image": framed(), "label": ids})
    assert sample["mask"].any() and not sample["mask"][ids < 0].any()
    outline = torch.full((1, 30, 30), -1.0)
    outline[:, 10:16, 10:20] = 1
    assert int(PlaceMask([outline], scale_range=(1.0, 1.0)).apply(framed(), torch.ones(1, 80, 96), seed=1).sum()) == 60
    with pytest.raises(ValueError, match="empty"):
        PlaceMask([torch.full((1, 30, 30), -1.0)])


@pytest.mark.parametrize("spacing_mm", [(1.0, 4.0, 0.5), (0.7, 0.7, 5.0), (0.5, 4.0, 4.0)])
def test_a_random_shape_is_as_long_in_mm_in_both_directions_of_a_slice_with_oblong_pixels(spacing_mm: tuple[float, ...]) -> None:
    size = [round(160 / mm) for mm in spacing_mm]
    image = MetaTensor(torch.ones(1, *size), affine=torch.diag(torch.tensor([*spacing_mm, 1.0])))
    for plane, axes in (("axial", (0, 1)), ("coronal", (0, 2)), ("sagittal", (1, 2))):
        place = PlaceMask(shape=cross, size_range=(0.25, 0.25), depth_mm=0.0, plane=plane)
        touched = place.apply(image, torch.ones(1, *size), seed=1)[0].nonzero()
        for axis in axes:
            assert abs((int(np.ptp(touched[:, axis].numpy())) + 1) * spacing_mm[axis] - 40) <= spacing_mm[axis]
