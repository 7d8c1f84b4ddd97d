from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.controlnet import ControlledDenoiser, build_controlnet, control_factor, load_controlnet
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec, spec_of, tiny_folder
from monai_diffaug.sampling.inpaint_latents import inpaint_latents

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(random_inpainter: str) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)


@pytest.fixture(scope="module")
def model_4ch(random_inpainter_4ch: str) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter_4ch), CPU)


def trained(model: Inpainter, **options) -> torch.nn.Module:
    """A ControlNet whose zero layers are not zero."""
    torch.manual_seed(0)
    network = build_controlnet(model.unet, model.factor, **options).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
                parameter.normal_(0, 0.2)
    return network


def call(model: Inpainter, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    channels = model.unet.config.in_channels
    return torch.randn(rows, channels, 16, 16, generator=generator), torch.tensor(500), model.encode_text(["a mass", "normal"][:1] * rows)


def edges(rows: int = 2) -> Tensor:
    return (torch.rand(rows, 1, 64, 64, generator=torch.Generator().manual_seed(2)) > 0.8).float()


@torch.no_grad()
@pytest.mark.parametrize("in_channels", [None, 4])
def test_a_new_controlnet_reproduces_the_plain_unet_exactly(model: Inpainter, in_channels: int | None) -> None:
    network = build_controlnet(model.unet, model.factor, in_channels=in_channels).eval()
    assert network.config.in_channels == (in_channels or 9)
    assert torch.equal(ControlledDenoiser(model, network, edges())(*call(model)), model.denoise(*call(model)))


@torch.no_grad()
def test_a_plain_four_channel_unet_is_supported(model_4ch: Inpainter) -> None:
    network = trained(model_4ch)
    steered = ControlledDenoiser(model_4ch, network, edges())(*call(model_4ch))
    assert steered.shape == (2, 4, 16, 16) and not torch.allclose(steered, model_4ch.denoise(*call(model_4ch)))


@torch.no_grad()
def test_the_control_changes_the_prediction_in_proportion_to_its_scale(model: Inpainter) -> None:
    network, plain = trained(model), model.denoise(*call(model))
    change = [float((ControlledDenoiser(model, network, edges(), scale=s)(*call(model)) - plain).abs().mean()) for s in (0, 0.1, 1)]
    assert change[0] == 0 < change[1] < change[2]
    other = ControlledDenoiser(model, network, 1 - edges())(*call(model))
    assert not torch.allclose(other, ControlledDenoiser(model, network, edges())(*call(model)))


@torch.no_grad()
def test_both_branches_of_guidance_get_the_control_of_their_slice(model: Inpainter) -> None:
    network = trained(model)
    latents, timestep, context = call(model)
    denoise = ControlledDenoiser(model, network, edges())
    empty = model.encode_text([""]).expand(2, -1, -1)
    both = denoise(torch.cat([latents, latents]), timestep, torch.cat([empty, context]))
    assert torch.allclose(both[:2], denoise(latents, timestep, empty), atol=1e-5)
    assert torch.allclose(both[2:], denoise(latents, timestep, context), atol=1e-5)
    assert not torch.allclose(both[:2], model.denoise(latents, timestep, empty), atol=1e-3)


@torch.no_grad()
def test_a_slice_of_the_sampling_loop_does_not_depend_on_its_batch(model: Inpainter) -> None:
    generator = torch.Generator().manual_seed(3)
    clean, noise, masked = (torch.randn(2, 4, 16, 16, generator=generator) for _ in range(3))
    mask, context, empty = torch.ones(2, 1, 16, 16), model.encode_text(["a mass", "b"]), model.encode_text(["", ""])
    network, control = trained(model), edges()

    def run(rows: slice) -> Tensor:
        return inpaint_latents(
            ControlledDenoiser(model, network, control[rows]),
            model.scheduler,
            clean=clean[rows],
            noise=noise[rows],
            mask=mask[rows],
            masked=masked[rows],
            context=context[rows],
            negative_context=empty[rows],
            guidance_scale=3.0,
            num_inference_steps=2,
        )

    assert torch.allclose(run(slice(0, 2)), torch.cat([run(slice(0, 1)), run(slice(1, 2))]), atol=1e-4)


@torch.no_grad()
def test_a_control_of_another_size_or_factor_is_resized(model: Inpainter) -> None:
    network = build_controlnet(model.unet, 8).eval()
    assert control_factor(network) == 8 and control_factor(build_controlnet(model.unet, model.factor)) == 4
    assert ControlledDenoiser(model, network, edges())(*call(model)).shape == (2, 4, 16, 16)


def test_a_controlnet_or_control_that_does_not_fit_is_refused(model: Inpainter, model_4ch: Inpainter) -> None:
    network = build_controlnet(model.unet, model.factor)
    with pytest.raises(ValueError, match="9 input channels"):
        ControlledDenoiser(model_4ch, network, edges())
    with pytest.raises(ValueError, match="control must be"):
        ControlledDenoiser(model, network, edges()[0])
    with pytest.raises(ValueError, match="expected a multiple"):
        ControlledDenoiser(model, network, edges(2), scale=1.0)(*call(model, 3))
    with pytest.raises(ValueError, match="factor"):
        build_controlnet(model.unet, 6)
    from diffusers import ControlNetModel

    other = ControlNetModel.from_config({**network.config, "block_out_channels": (16, 16)})
    with pytest.raises(ValueError, match="block_out_channels"):
        ControlledDenoiser(model, other, edges())


def test_a_saved_folder_loads_with_the_weights_it_was_saved_with(model: Inpainter, tmp_path: Path) -> None:
    network = trained(model)
    network.save_pretrained(tmp_path / "run/controlnet")
    for source in (tmp_path / "run/controlnet", tmp_path / "run"):
        loaded = load_controlnet(spec_of("controlnet", source), CPU)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))
        assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
    half = load_controlnet(ModelSpec("controlnet", str(tmp_path / "run"), "float16"), CPU)
    assert next(half.parameters()).dtype == torch.float16


def test_a_live_network_is_used_itself_and_its_spec_is_small(model: Inpainter) -> None:
    network = build_controlnet(model.unet, model.factor)
    spec = spec_of("controlnet", network)
    assert load_controlnet(spec, CPU) is network and len(pickle.dumps(spec)) < 1000
    with pytest.raises(ValueError, match="ControlNetModel"):
        load_controlnet(spec_of("controlnet", torch.nn.Linear(1, 1)), CPU)


def test_the_error_of_a_missing_source_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("monai_diffaug.models.sources.tiny_folder", lambda part: tmp_path / "no" / part)
    for source, words in (
        ("tiny", "monai-diffaug train controlnet"),
        (str(tmp_path), "config.json"),
        ("nowhere", "no hub id"),
        ("some-org/no-such-controlnet-here@main", "hf download"),
    ):
        with pytest.raises(ModelSourceError, match=words):
            load_controlnet(ModelSpec("controlnet", source), CPU)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_controlnet(ModelSpec("controlnet", str(tmp_path)), CPU)


def test_the_embedded_controlnet_is_small_and_fits_the_embedded_inpainter() -> None:
    from monai_diffaug.training.embedded.architectures import CONTROL_WIDTHS, build_unet

    network = build_controlnet(build_unet(), 4, widths=CONTROL_WIDTHS)
    assert sum(p.numel() for p in network.parameters()) <= 3_000_000 and control_factor(network) == 4
    if not (tiny_folder("controlnet") / "config.json").is_file():
        pytest.skip("no embedded ControlNet in this tree")
    assert sum(f.stat().st_size for f in tiny_folder("controlnet").rglob("*") if f.is_file()) <= 6_000_000
    embedded = load_inpainter(ModelSpec("inpainter"), CPU)
    with torch.no_grad():
        steered = ControlledDenoiser(embedded, load_controlnet(ModelSpec("controlnet"), CPU), torch.ones(1, 1, 128, 128))
        latents, context = torch.zeros(1, 9, 32, 32), embedded.encode_text(["a mass"])
        assert not torch.allclose(steered(latents, torch.tensor(500), context), embedded.denoise(latents, torch.tensor(500), context))
