from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_diffaug.edit import denoise
from monai_diffaug.edit.options import InpaintOptions, Noise, SoftEdge
from monai_diffaug.geometry.roi import roi_around
from monai_diffaug.geometry.slices import slice_plane, to_slices, touched
from monai_diffaug.geometry.squares import Square, squares_of, whole_slices
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

SIZE_PX = 64
FAR = ((40, 60), (300, 420))  # top left corners of two lesions


def masked(*corners: tuple[int, int], side: int = 20, size: tuple[int, int] = (400, 500)) -> Tensor:
    mask = torch.zeros(1, *size)
    for top, left in corners:
        mask[:, top : top + side, left : left + side] = 1
    return mask


def squares_around(mask: Tensor, context: float = 2.0, size: int = SIZE_PX) -> list[Square]:
    slices = to_slices(mask, slice_plane(None, "axial") if mask.ndim == 4 else None)
    return squares_of(slices, touched(slices), size, context)


def test_lesions_far_apart_have_separate_squares_without_downsampling() -> None:
    mask = masked(*FAR)
    squares = squares_around(mask, 2.0)
    assert [square.part for square in squares] == [0, 1]
    assert all(square.roi.side <= SIZE_PX == square.size for square in squares)
    assert torch.equal(sum(square.mask for square in squares), mask[0])
    for square, (top, left) in zip(squares, FAR, strict=True):
        assert bool(square.mask[top : top + 20, left : left + 20].all()) and int((square.mask != 0).sum()) == 400
        assert square.roi.top <= top and square.roi.left <= left
        assert square.roi.top + square.roi.side >= top + 20 and square.roi.left + square.roi.side >= left + 20


@pytest.mark.parametrize("corners", [FAR[:1], ((40, 60), (48, 82)), ((40, 60), (60, 80))])
def test_lesions_that_fit_into_one_square_have_one_square(corners: tuple[tuple[int, int], ...]) -> None:
    mask = masked(*corners)
    (square,) = squares_around(mask, 1.2)
    assert square.part == 0 and square.roi.side <= SIZE_PX and torch.equal(square.mask, mask[0])


def test_a_lesion_inside_the_square_of_another_shares_it() -> None:
    mask = masked((40, 60), (300, 420))
    mask[:, 100:200, 60:160] = 1  # too large for the model; its square reaches to the first one
    shared, alone = squares_around(mask, 2.0)
    assert (shared.part, alone.part) == (0, 2) and alone.roi.side <= SIZE_PX < shared.roi.side
    assert bool(shared.mask[40:60, 60:80].all()) and bool(shared.mask[100:200, 60:160].all()) and not bool(shared.mask[300:, 420:].any())


def test_squares_never_have_more_pixels_than_the_slice() -> None:
    scattered = masked(*((top, left) for top in range(10, 110, 24) for left in range(10, 110, 24)), side=4, size=(130, 130))
    (square,) = squares_around(scattered, 8.0, 32)
    assert torch.equal(square.mask, scattered[0]) and square.roi.side > 32


def test_less_context_for_a_large_lesion_leaves_the_square_of_a_small_one_as_it_is() -> None:
    mask = masked(FAR[0])
    mask[:, 250:350, 300:400] = 1
    stack = mask[None]
    (small, large), (_, reduced) = squares_of(stack, [0], SIZE_PX), squares_of(stack, [0], SIZE_PX, least_context=1.5)
    assert (large.roi.side, reduced.roi.side) == (200, 150)
    assert squares_of(stack, [0], SIZE_PX, least_context=1.5)[0].roi == small.roi


def test_a_lesion_keeps_its_number_from_slice_to_slice() -> None:
    empty = torch.zeros(1, 400, 500)
    volume = torch.stack([empty, masked(FAR[1]), masked(*FAR), masked(*FAR), empty, empty, masked((180, 250))], dim=-1)
    squares = squares_around(volume)
    assert [square.row for square in squares] == [1, 2, 2, 3, 3, 6]
    numbers = [square.part for square in squares]
    assert numbers[0] in numbers[1:3] and sorted(numbers[1:3]) == sorted(numbers[3:5]) and numbers[5] not in numbers[:5]


def test_a_speckled_mask_is_one_square_within_a_second() -> None:
    specks = (torch.rand(1, 512, 512, generator=torch.Generator().manual_seed(0)) < 0.01).float()
    start = time.process_time()
    (square,) = squares_around(specks)
    assert time.process_time() - start < 1 and torch.equal(square.mask, specks[0])


def test_an_empty_mask_has_no_squares() -> None:
    assert squares_around(torch.zeros(1, 400, 500)) == [] == whole_slices(torch.zeros(1, 1, 9, 9), [], 8)


@pytest.fixture
def transform(random_inpainter: str) -> DiffusionLocalInpaint:
    return DiffusionLocalInpaint(
        random_inpainter, num_inference_steps=2, window=(0, 1), options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=0))
    )


def test_each_lesion_is_repainted_with_different_noise_and_nothing_else_changes(transform: DiffusionLocalInpaint) -> None:
    image, mask = torch.full((1, 400, 500), 0.4), masked(*FAR)
    edit = transform.apply(image, mask, "mass", seed=3)
    first, second = (edit.image[:, top : top + 20, left : left + 20] for top, left in FAR)
    assert edit.record["n_slices"] == 1 and torch.equal(edit.image[mask == 0], image[mask == 0])
    assert float((first - 0.4).abs().mean()) > 1e-3 and float((second - 0.4).abs().mean()) > 1e-3
    assert float((first - second).abs().mean()) > 1e-3


def test_the_first_of_two_lesions_is_repainted_as_if_it_were_alone(transform: DiffusionLocalInpaint) -> None:
    image = torch.rand(1, 400, 500, generator=torch.Generator().manual_seed(0))
    (top, left), _ = FAR
    both, alone = (transform.apply(image, mask, "mass", seed=3).image for mask in (masked(*FAR), masked(FAR[0])))
    torch.testing.assert_close(both[:, top : top + 20, left : left + 20], alone[:, top : top + 20, left : left + 20], atol=1e-4, rtol=0)


def test_the_soft_region_of_lesions_apart_holds_every_voxel_that_changes(random_inpainter: str) -> None:
    transform = DiffusionLocalInpaint(
        random_inpainter, num_inference_steps=1, options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=8.0))
    )
    image, mask = torch.rand(1, 400, 500), masked(*FAR)
    changed = transform.apply(image, mask, "mass", seed=4).image != image
    region = transform.soft_region(image, mask)
    assert not bool((changed & (region == 0)).any()) and bool((changed & (mask == 0)).any())
    assert all(float(region[0, top + 10, left + 10]) == 1 for top, left in FAR)


def test_correlated_noise_follows_a_lesion_through_the_slices(random_inpainter: str) -> None:
    volume = torch.full((1, 400, 500, 3), 0.4)
    mask = torch.stack([masked(*FAR)] * 3, dim=-1)
    still, moving = (
        DiffusionLocalInpaint(random_inpainter, num_inference_steps=1, window=(0, 1), options=InpaintOptions(noise=Noise(rho=rho))).apply(
            volume, mask, "mass", seed=3
        )
        for rho in (1.0, 0.0)
    )
    assert still.record["n_slices"] == 3
    for top, left in FAR:
        one, other = (edit.image[:, top : top + 20, left : left + 20] for edit in (still, moving))
        assert float((one[..., 0] - one[..., 2]).abs().max()) < 1e-4 < float((other[..., 0] - other[..., 2]).abs().max())


@pytest.mark.slow
def test_two_places_of_a_real_x_ray_come_back_sharper_than_from_one_square(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = torch.tensor(np.load(real_data / "chest_xray.npz")["images"][0]).float()[None]
    mask = masked((95, 55), (95, 170), side=30, size=(256, 256))
    transform = DiffusionLocalInpaint(
        "tiny", num_inference_steps=10, options=InpaintOptions(noise=Noise(source="inverted")), guidance_scale=1.0, window=(0, 255)
    )

    def error() -> float:
        again = transform.apply(picture, mask, "x-ray of chest, normal tissue", seed=1).image
        return float((again - picture)[mask > 0].abs().mean())

    def one_square(masks: Tensor, rows: Sequence[int], size: int, context: float, **_: object) -> list[Square]:
        return [Square(row, roi_around(masks[row, 0], size, context), size, masks[row, 0]) for row in rows]

    apart = error()
    monkeypatch.setattr(denoise, "squares_of", one_square)
    together = error()
    assert apart < 0.8 * together, f"grey levels: {apart:.2f} apart, {together:.2f} together"
