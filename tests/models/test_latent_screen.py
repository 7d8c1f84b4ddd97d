"""The latent screen: network, files, live objects, and the VAE that it belongs to."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.latent_screen import (
    LatentScreen,
    ScreenConfig,
    ScreenNetwork,
    load_latent_screen,
    save_latent_screen,
    vae_fingerprint,
)
from monai_diffaug.models.registry import ModelSpec, spec_of, tiny_folder

SMALL = ScreenConfig(channels=8, blocks_down=(1, 1), blocks_up=(1,), vae_fingerprint="abc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_latent_screen(ScreenNetwork(SMALL), tmp_path)
    return tmp_path


def vae(random_inpainter: str) -> Any:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu")).vae


def test_latents_become_one_logit_per_pixel_at_sizes_that_can_be_halved() -> None:
    network = ScreenNetwork(ScreenConfig()).eval()
    for side in (32, 20):
        assert network(torch.randn(2, 4, side, side)).shape == (2, 1, side, side)
    with pytest.raises(ValueError, match=r"multiples of 4, got \(1, 4, 18, 20\)"):
        network(torch.zeros(1, 4, 18, 20))
    with pytest.raises(ValueError, match=r"\(B, 4, h, w\)"):
        network(torch.zeros(1, 3, 16, 16))


def test_the_default_network_has_less_than_eight_hundred_thousand_parameters() -> None:
    assert sum(p.numel() for p in ScreenNetwork(ScreenConfig()).parameters()) < 800_000


def test_a_network_saved_in_half_precision_predicts_the_same(folder: Path) -> None:
    torch.manual_seed(0)
    network, latents = ScreenNetwork(SMALL).eval(), torch.randn(1, 4, 16, 16)
    loaded = load_latent_screen(ModelSpec("latent_screen", str(folder)))
    assert torch.allclose(loaded.predict(latents), network(latents).sigmoid(), atol=2e-3)
    assert loaded.fingerprint == "abc" and not any(p.requires_grad for p in loaded.network.parameters())
    assert (folder / "model.safetensors").stat().st_size < 2.2 * sum(p.numel() for p in network.parameters()) + 10_000


def test_probabilities_stay_float32_inside_autocast(folder: Path) -> None:
    screen, latents = load_latent_screen(ModelSpec("latent_screen", str(folder))), torch.randn(1, 4, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = screen.predict(latents.bfloat16().float())
    assert inside.dtype == torch.float32 and torch.equal(inside, screen.predict(latents.bfloat16()))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named_with_the_recipe_that_writes_it(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelSourceError, match=rf"{missing} is missing.*monai-diffaug train latent-screen"):
        load_latent_screen(ModelSpec("latent_screen", str(folder)))


@pytest.mark.parametrize("content", ["{", "[]", '{"channels": 8}', '{"blocks_down": [1], "blocks_up": [1], "width": 3}'])
def test_a_broken_configuration_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is no configuration of a latent screen"):
        load_latent_screen(ModelSpec("latent_screen", str(folder)))


def test_weights_of_another_size_and_truncated_ones_have_different_errors(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "channels": 16}))
    with pytest.raises(ValueError, match="does not fit"):
        load_latent_screen(ModelSpec("latent_screen", str(folder)))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated"):
        load_latent_screen(ModelSpec("latent_screen", str(folder)))


def test_a_module_a_callable_and_a_screen_are_accepted() -> None:
    module = nn.Conv2d(4, 1, 1).train()
    screen = load_latent_screen(spec_of("latent_screen", module))
    latents = torch.randn(2, 4, 8, 8)
    assert torch.allclose(screen.predict(latents), module(latents).sigmoid(), atol=1e-6)
    assert module.training and screen.network is not module and screen.fingerprint == ""

    def bright(z: Tensor) -> Tensor:
        return z[:, :1] * 100

    assert load_latent_screen(spec_of("latent_screen", bright)).network is bright
    assert load_latent_screen(spec_of("latent_screen", screen)) is screen
    with pytest.raises(ValueError, match="got int"):
        load_latent_screen(spec_of("latent_screen", 3))


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits \(1, 1, 8, 8\), got \(1, 4, 8, 8\)"):
        LatentScreen(lambda z: z).predict(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="got tuple"):
        LatentScreen(lambda z: (z,)).predict(torch.zeros(1, 4, 8, 8))


def test_the_fingerprint_is_of_the_encoder_and_not_of_the_decoder(random_inpainter: str) -> None:
    network = vae(random_inpainter)
    mark = vae_fingerprint(network)
    with torch.no_grad():
        next(network.decoder.parameters()).add_(1.0)
        assert vae_fingerprint(network) == mark
        next(network.encoder.parameters()).add_(1.0)
    assert not set(vae_fingerprint(network).split("-")) & set(mark.split("-"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_screen_fits_its_vae_in_every_precision_and_no_other_vae(random_inpainter: str, dtype: str) -> None:
    screen = LatentScreen(lambda z: z, fingerprint=vae_fingerprint(vae(random_inpainter)))
    loaded = load_inpainter(ModelSpec("inpainter", random_inpainter, dtype), torch.device("cpu")).vae
    screen.check_vae(loaded)
    other = deepcopy(loaded)
    with torch.no_grad():
        next(other.encoder.parameters()).mul_(2.0)
    with pytest.raises(ValueError, match=r"another VAE.*monai-diffaug train latent-screen"):
        screen.check_vae(other)
    LatentScreen(lambda z: z).check_vae(other)  # a live callable is not checked


@pytest.mark.skipif(not (tiny_folder("latent_screen") / "config.json").is_file(), reason="no embedded latent screen in this tree")
def test_the_embedded_screen_is_small_and_belongs_to_the_embedded_inpainter() -> None:
    screen = load_latent_screen(ModelSpec("latent_screen"))
    screen.check_vae(load_inpainter(ModelSpec("inpainter"), torch.device("cpu")).vae)
    assert screen.fingerprint and (tiny_folder("latent_screen") / "model.safetensors").stat().st_size < 1_600_000
