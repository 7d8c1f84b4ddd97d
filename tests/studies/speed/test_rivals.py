"""The arms that the package is compared with: the calls that each makes."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.studies.speed.rivals import bare_edit, posterior_mode, rival_arms
from monai_diffaug.studies.speed.timed_edits import EditSettings, make_volume

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(random_inpainter: str) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)


def unet_rows(model: Inpainter, run: object) -> list[int]:
    rows: list[int] = []
    hook = model.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        run()  # type: ignore[operator]
    finally:
        hook.remove()
    return rows


def test_the_loops_call_the_pipeline_per_slice_per_masked_slice_or_once(small: Inpainter) -> None:
    volume, settings = make_volume(32, 4, empty_fraction=0.5), EditSettings(steps=2)
    with posterior_mode():
        arms = rival_arms(small, volume, settings)
        rows = {name: unet_rows(small, run) for name, run in arms.items()}
    assert rows == {"a": [2] * 8, "b": [2] * 4, "c": [4] * 2}
    assert rival_arms(small, volume, settings, "cb").keys() == {"b", "c"}


def test_the_loops_change_masked_pixels_only_and_agree(small: Inpainter) -> None:
    volume, settings = make_volume(32, 3), EditSettings(steps=2)
    with posterior_mode():
        results = {name: run() for name, run in rival_arms(small, volume, settings).items()}
    for result in results.values():
        changed = result != volume.slices
        assert bool(changed[volume.masks > 0].any()) and not bool(changed[volume.masks == 0].any())
    assert torch.allclose(results["b"], results["c"], atol=1e-2) and torch.allclose(results["a"], results["b"], atol=1.0)


def test_the_bare_edit_has_the_calls_of_an_edit(small: Inpainter) -> None:
    calls: list[tuple[str, int]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: calls.append((name, len(args[0]))))
        for name, module in (("encode", small.vae.encoder), ("unet", small.unet), ("decode", small.vae.decoder))
    ]
    try:
        bare_edit(small, 3, 32, EditSettings(steps=2, batch_size=2))()
        guided = list(calls)
        calls.clear()
        bare_edit(small, 3, 32, EditSettings(steps=1, guidance_scale=1.0, batch_size=2))()
    finally:
        for hook in hooks:
            hook.remove()
    assert [rows for name, rows in guided if name == "unet"] == [4, 4, 2, 2]
    assert [rows for name, rows in calls if name == "unet"] == [2, 1]
    for part in ("encode", "decode"):
        assert sum(rows for name, rows in guided if name == part) == 3


def test_the_posterior_is_sampled_again_after_an_error() -> None:
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as module

    original = module.retrieve_latents
    with pytest.raises(KeyError), posterior_mode():
        assert module.retrieve_latents is not original
        raise KeyError
    assert module.retrieve_latents is original
