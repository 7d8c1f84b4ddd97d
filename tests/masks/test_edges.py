from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.masks.edges import canny, control_image, outline, scharr
from monai_diffaug.studies.edge_control import edge_overlap


def disc(size: int = 64, radius: float = 18.0) -> torch.Tensor:
    ys, xs = np.indices((size, size)) - (size - 1) / 2
    return torch.from_numpy((np.hypot(ys, xs) <= radius).astype(np.float32))[None, None]


def test_canny_draws_a_thin_closed_line_around_a_disc() -> None:
    edges = canny(disc())
    ys, xs = np.nonzero(edges[0, 0].numpy())
    distance = np.hypot(ys - 31.5, xs - 31.5)
    assert abs(distance.mean() - 18) < 1 and distance.std() < 1
    assert 0.8 * 2 * np.pi * 18 < len(ys) < 1.5 * 2 * np.pi * 18


def test_canny_agrees_with_scikit_image() -> None:
    feature = pytest.importorskip("skimage.feature")
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 1, 9, 9, generator=generator), (96, 96), mode="bicubic").clamp(0, 1)
    ours = canny(image, sigma_px=1.5)[0]
    theirs = torch.from_numpy(feature.canny(image[0, 0].numpy(), sigma=1.5, low_threshold=0.1, high_threshold=0.2, mode="nearest"))[
        None
    ].float()
    ours, theirs = ours[:, 3:-3, 3:-3], theirs[:, 3:-3, 3:-3]
    assert theirs.sum() > 100
    assert edge_overlap(ours, theirs, tolerance_px=1).f1 > 0.95
    assert 0.9 < float(ours.sum() / theirs.sum()) < 1.1


def test_a_constant_image_has_no_edges_not_even_at_its_border() -> None:
    flat = torch.full((1, 1, 32, 32), 0.7)
    assert not canny(flat).any() and scharr(flat).max() < 1e-5


def test_a_weak_edge_remains_only_if_it_is_connected_to_a_strong_one() -> None:
    image = torch.zeros(2, 1, 48, 48)
    ramp = torch.linspace(0.5, 0.05, 48)
    image[0, 0, :, 24:] = ramp[:, None]  # the step fades from top to bottom
    image[1, 0, :, 24:] = 0.05  # as weak as the end of the first, everywhere
    edges = canny(image, sigma_px=1.0, low=0.05, high=0.4)
    assert edges[0, 0, 44].any() and not edges[1].any()


def test_slices_of_a_stack_do_not_influence_each_other() -> None:
    stack = torch.cat([disc(radius=18), 0.15 * disc(radius=18)])
    together = canny(stack, low=0.02, high=0.3)
    assert torch.equal(together, torch.cat([canny(each[None], low=0.02, high=0.3) for each in stack]))
    assert together[0].any() and not together[1].any()


def test_scharr_is_the_change_per_pixel_and_at_most_one() -> None:
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8:] = 0.1
    assert scharr(image, sigma_px=0, gain=1.0).max() == pytest.approx(0.05)
    assert scharr(image * 10).max() == 1


def test_the_outline_is_one_pixel_wide_and_inside_and_classes_are_separated() -> None:
    mask = torch.zeros(1, 1, 12, 12)
    mask[..., 3:9, 3:9] = 1
    ring = outline(mask)
    assert ring.sum() == 36 - 16 and not (ring * (1 - mask)).any()
    mask[..., 3:9, 6:9] = 2
    assert outline(mask)[0, 0, 5, 5] == 1 and outline(mask)[0, 0, 5, 6] == 1


def test_a_mask_of_one_pixel_keeps_its_outline_and_a_full_mask_has_none() -> None:
    dot = torch.zeros(1, 1, 9, 9)
    dot[..., 4, 4] = 1
    assert torch.equal(outline(dot), dot)
    assert not outline(torch.ones(1, 1, 9, 9)).any()


def test_edges_inside_the_mask_can_be_removed_but_not_its_outline() -> None:
    image, mask = disc(radius=10), disc(radius=20)
    complete, dropped = control_image(image, mask), control_image(image, mask, keep_inside=False)
    assert complete[disc(radius=14) > 0].any() and not dropped[disc(radius=14) > 0].any()
    assert torch.equal(dropped, outline(mask)) and bool((complete >= dropped).all()) and complete.max() == 1


def test_edges_do_not_depend_on_torchs_default_dtype() -> None:
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = canny(image), scharr(image)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(canny(image), expected[0]) and torch.equal(scharr(image), expected[1])
    finally:
        torch.set_default_dtype(torch.float32)
