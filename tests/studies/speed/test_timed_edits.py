"""Volumes and settings of the timed edits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.studies.speed.time_and_memory import median_interval
from monai_diffaug.studies.speed.timed_edits import FULL, QUICK, EditSettings, dtype_name, make_volume


@pytest.fixture(scope="module")
def small(random_inpainter: str) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))


@pytest.mark.parametrize(("empty", "touched"), [(0.0, 8), (0.5, 4), (0.75, 2)])
def test_the_share_of_slices_without_a_mask_is_the_empty_fraction(empty: float, touched: int) -> None:
    volume = make_volume(64, 8, empty_fraction=empty)
    assert len(volume.indices) == touched == int(volume.mask.amax((0, 1, 2)).sum())


def test_the_grey_values_are_integers_of_8_bit() -> None:
    image = make_volume(32, 3).image
    assert torch.equal(image, image.to(torch.uint8).float()) and image.std() > 10


def test_downsampling_of_the_mask_by_nearest_and_by_maximum_are_equal() -> None:
    for cell in (4, 8):
        masks = make_volume(64, 2, cell_px=cell).masks
        assert torch.equal(F.max_pool2d(masks, cell), F.interpolate(masks, scale_factor=1 / cell))


def test_the_diameter_of_the_lesion_is_its_share_of_the_slice() -> None:
    rows = make_volume(256, 1, lesion=0.25).mask[0, :, :, 0].any(1).sum()
    assert rows == 64


def test_the_edit_has_the_steps_guidance_and_hard_mask_of_its_settings(small: Inpainter) -> None:
    calls: list[int] = []
    hook = small.unet.conv_in.register_forward_hook(lambda module, args, result: calls.append(len(args[0])))
    volume, settings = make_volume(32, 2), EditSettings(steps=3, guidance_scale=1.0, batch_size=1)
    try:
        edited = settings.edit(small, volume)()
    finally:
        hook.remove()
    changed = edited.image != volume.image  # type: ignore[attr-defined]
    assert calls == [1] * 6 and torch.equal(changed & (volume.mask == 0), torch.zeros_like(changed)) and bool(changed.any())
    assert not settings.guided and replace(settings, guidance_scale=3.0).guided


def test_the_region_of_interest_is_edited_at_the_models_size_and_the_whole_slice_at_its_own(small: Inpainter) -> None:
    sizes: list[int] = []
    hook = small.vae.encoder.register_forward_hook(lambda module, args, result: sizes.append(args[0].shape[-1]))
    volume, settings = make_volume(128, 1, lesion=0.2), EditSettings(steps=1)
    try:
        settings.edit(small, volume)()
        whole = set(sizes)
        sizes.clear()
        settings.edit(small, volume, whole_slice=False)()
    finally:
        hook.remove()
    assert whole == {128} and set(sizes) == {64}


def test_a_full_run_has_rounds_for_an_interval_and_a_quick_one_measures_less() -> None:
    values = [float(i) for i in range(FULL.rounds)]
    assert median_interval(values) == [values[len(values) // 2], values[0], values[-1]] and FULL.rounds >= 6
    assert QUICK.rounds < FULL.rounds and not QUICK.larger_models and set(QUICK.volumes) < set(FULL.volumes)
    assert dtype_name(torch.bfloat16) == "bfloat16"
