from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec, spec_of
from monai_diffaug.models.semantic_controller import (
    SemanticDenoiser,
    SemanticModel,
    build_semantic_model,
    load_semantic_controller,
    patch_mask,
    save_semantic_controller,
)
from monai_diffaug.sampling.inpaint_latents import inpaint_latents

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inpainter(random_inpainter) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)


@pytest.fixture(scope="module")
def untrained(inpainter) -> SemanticModel:
    torch.manual_seed(0)
    model = build_semantic_model(inpainter, grid=8)
    model.parts.requires_grad_(False)
    return model


@pytest.fixture(scope="module")
def steering(inpainter) -> SemanticModel:
    """A model whose value maps are not zero, as after training."""
    torch.manual_seed(0)
    model = build_semantic_model(inpainter, grid=8)
    for processor in model.adapter.processors:
        torch.nn.init.normal_(processor.to_v_ip[0].weight)
    model.parts.requires_grad_(False)
    return model


@pytest.fixture
def crops() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images (2, 3, 64, 64) in [-1, 1] and hard masks."""
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    hard = torch.zeros(2, 1, 64, 64)
    hard[:, :, 20:40, 24:44] = 1
    return images, hard


def unet_input() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 9, 16, 16, generator=torch.Generator().manual_seed(2)), torch.tensor(400)


def test_an_untrained_adapter_reproduces_the_plain_unet_exactly(inpainter, untrained, crops) -> None:
    context = inpainter.encode_text(["a mass", "a cyst"])
    denoise = SemanticDenoiser(inpainter, untrained, images=crops[0], hard=crops[1], context=context)
    latents, timestep = unet_input()
    with torch.no_grad():
        assert torch.equal(denoise(latents, timestep, context), inpainter.denoise(latents, timestep, context))


def test_the_tokens_change_the_conditional_half_of_the_batch_only(inpainter, steering, crops) -> None:
    context, negative = inpainter.encode_text(["a mass", "a cyst"]), inpainter.encode_text(["", ""])
    denoise = SemanticDenoiser(inpainter, steering, images=crops[0], hard=crops[1], context=context)
    latents, timestep = unet_input()
    with torch.no_grad():
        unconditional, conditional = denoise(torch.cat([latents] * 2), timestep, torch.cat([negative, context])).chunk(2)
        plain = inpainter.denoise(torch.cat([latents] * 2), timestep, torch.cat([negative, context]))
        alone = denoise(latents, timestep, context)
    assert torch.allclose(unconditional, plain[:2], atol=1e-5)
    assert (conditional - plain[2:]).abs().max() > 1e-3
    assert torch.allclose(conditional, alone, atol=1e-5)


def test_the_shared_unet_keeps_its_processors_its_config_and_its_output(inpainter, steering, crops) -> None:
    latents, timestep = unet_input()
    context = inpainter.encode_text(["a mass", "a cyst"])
    processors, config = dict(inpainter.unet.attn_processors), dict(inpainter.unet.config)
    with torch.no_grad():
        before = inpainter.denoise(latents, timestep, context)
        denoise = SemanticDenoiser(inpainter, steering, images=crops[0], hard=crops[1], context=context)
        denoise(latents, timestep, context)
        assert torch.equal(before, inpainter.denoise(latents, timestep, context))
    assert inpainter.unet.attn_processors == processors and dict(inpainter.unet.config) == config
    shared = {id(p) for name, p in denoise.unet.named_parameters() if "processor" not in name}
    assert shared == {id(p) for p in inpainter.unet.parameters()}


def test_all_threads_get_the_same_unet_of_a_model(inpainter, steering) -> None:
    unets: list[object] = []
    threads = [threading.Thread(target=lambda: unets.append(steering.unet_of(inpainter.unet))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(unets) == 4 and len({id(unet) for unet in unets}) == 1


def with_lora(unet: Any) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))


def with_assigned_weights(unet: Any) -> None:
    unet.load_state_dict({name: value * 1.1 for name, value in unet.state_dict().items()}, assign=True)
    unet.requires_grad_(False)


CHANGES: dict[str, tuple[Callable[[Any], None], Callable[[Any], None]]] = {
    "a lora is added": (lambda unet: None, with_lora),
    "a lora is removed": (with_lora, lambda unet: unet.delete_adapters("default")),
    "a lora is scaled": (with_lora, lambda unet: unet.set_adapters(["default"], [0.3])),
    "a lora is switched off": (with_lora, lambda unet: unet.disable_lora()),
    "weights are written into": (lambda unet: None, lambda unet: unet.conv_in.weight.mul_(2)),
    "weights are assigned": (lambda unet: None, with_assigned_weights),
    "a block is replaced": (lambda unet: None, lambda unet: unet.up_blocks.__setitem__(-1, deepcopy(unet.up_blocks[-1]).apply(_doubled))),
    "free u is set": (lambda unet: None, lambda unet: unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)),
}


def _doubled(module: Any) -> None:
    for value in module.parameters(recurse=False):
        value.mul_(2)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_unet_after_the_last_use_has_an_effect(inpainter, untrained, crops, change: str) -> None:
    before_use, change_it = CHANGES[change]
    live = replace(inpainter, unet=deepcopy(inpainter.unet))
    context, noisy = live.encode_text(["a mass", "a cyst"]), unet_input()
    with torch.no_grad():
        before_use(live.unet)
        first = SemanticDenoiser(live, untrained, images=crops[0], hard=crops[1], context=context)(*noisy, context)
        assert torch.allclose(first, live.denoise(*noisy, context), atol=1e-6)
        change_it(live.unet)
        plain = live.denoise(*noisy, context)
        assert not torch.allclose(plain, first, atol=1e-4)
        second = SemanticDenoiser(live, untrained, images=crops[0], hard=crops[1], context=context)(*noisy, context)
    assert torch.allclose(second, plain, atol=1e-6)


def test_a_lora_fused_after_the_last_use_is_not_added_twice(inpainter, untrained, crops) -> None:
    live = replace(inpainter, unet=deepcopy(inpainter.unet))
    context, noisy = live.encode_text(["a mass", "a cyst"]), unet_input()
    with torch.no_grad():
        with_lora(live.unet)
        SemanticDenoiser(live, untrained, images=crops[0], hard=crops[1], context=context)
        live.unet.fuse_lora()
        fused = SemanticDenoiser(live, untrained, images=crops[0], hard=crops[1], context=context)
        assert torch.allclose(fused(*noisy, context), live.denoise(*noisy, context), atol=1e-5)


def test_the_module_inside_a_compiled_unet_is_used(inpainter, untrained) -> None:
    assert untrained.unet_of(torch.compile(inpainter.unet)) is untrained.unet_of(inpainter.unet)


def test_compiled_blocks_of_the_unet_do_not_hide_the_tokens(inpainter, steering, crops) -> None:
    live = replace(inpainter, unet=deepcopy(inpainter.unet))
    middle = live.unet.mid_block
    for block in (middle.resnets[0], middle.attentions[0].transformer_blocks[0]):
        block.compile(dynamic=False, backend="eager")
    context, noisy = live.encode_text(["a mass", "a cyst"]), unet_input()
    with torch.no_grad():
        expected, result = (
            SemanticDenoiser(model, steering, images=crops[0], hard=crops[1], context=context)(*noisy, context)
            for model in (inpainter, live)
        )
    assert torch.allclose(result, expected, atol=1e-5)


def test_the_model_does_not_keep_a_unet_alive(inpainter, untrained) -> None:
    unet = deepcopy(inpainter.unet)
    untrained.unet_of(unet)
    count = len(untrained._unets)
    del unet
    gc.collect()
    assert len(untrained._unets) == count - 1


def test_the_tokens_of_a_sample_do_not_depend_on_its_batch_or_on_masked_pixels(inpainter, steering, crops) -> None:
    images, hard = crops
    context = inpainter.encode_text(["a mass", "a cyst"])
    together = steering.tokens(images, hard, context)
    assert torch.allclose(together[1:], steering.tokens(images[1:], hard[1:], context[1:]), atol=1e-4)
    assert torch.equal(together, steering.tokens(torch.where(hard > 0.5, images.flip(0), images), hard, context))
    assert together.shape == (2, 8 * 8 + 1, steering.config.token_dim)


def test_predictions_replace_the_features_under_the_mask_only(inpainter, steering, crops) -> None:
    text = inpainter.encode_text(["a mass", "a cyst"])
    patches, pooled = steering.encoder(crops[0] * (crops[1] < 0.5))
    hidden = patch_mask(crops[1], 8)
    torch.nn.init.normal_(steering.parts["controller"].to_patches.weight)
    moved = steering.tokens_of(patches, pooled, text, hidden) - steering.tokens_of(patches, pooled, text, torch.zeros_like(hidden))
    size = moved[:, :-1].abs().amax(dim=2, keepdim=True)
    assert (size[hidden == 0] == 0).all() and (size[hidden == 1] > 0).all()


def test_the_sampler_runs_with_it_and_other_batch_sizes_are_refused(inpainter, steering, crops) -> None:
    images, hard = crops
    context = inpainter.encode_text(["a mass", "a cyst"])
    denoise = SemanticDenoiser(inpainter, steering, images=images, hard=hard, context=context)
    with torch.no_grad():
        clean = inpainter.encode(images)
        result = inpaint_latents(
            denoise,
            inpainter.scheduler,
            clean=clean,
            masked=inpainter.encode(images * (hard < 0.5)),
            noise=torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)),
            mask=inpainter.latent_mask(hard),
            context=context,
            negative_context=inpainter.encode_text(["", ""]),
            guidance_scale=2.0,
            num_inference_steps=2,
        )
    assert torch.isfinite(result).all()
    with pytest.raises(ValueError, match="made for 2 images"):
        denoise(torch.zeros(3, 9, 16, 16), torch.tensor(1), context)


def test_a_saved_model_comes_back_with_the_same_tokens_in_half_precision(tmp_path: Path, inpainter, steering, crops) -> None:
    save_semantic_controller(steering.config, steering.parts, tmp_path)
    loaded = load_semantic_controller(ModelSpec("semantic_controller", str(tmp_path)), CPU)
    context = inpainter.encode_text(["a mass", "a cyst"])
    assert torch.allclose(loaded.tokens(*crops, context), steering.tokens(*crops, context), atol=0.05)
    assert not any(p.requires_grad for p in loaded.parts.parameters())


def test_the_embedded_size_stays_below_five_megabytes(tmp_path: Path) -> None:
    tiny = load_inpainter(ModelSpec("inpainter"), CPU)
    model = build_semantic_model(tiny)
    assert save_semantic_controller(model.config, model.parts, tmp_path) < 5_000_000


def test_a_live_model_is_used_itself_and_other_objects_are_refused(steering) -> None:
    assert load_semantic_controller(spec_of("semantic_controller", steering), CPU) is steering
    with pytest.raises(ValueError, match="SemanticModel"):
        load_semantic_controller(spec_of("semantic_controller", object()), CPU)


def test_a_missing_folder_is_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="monai-diffaug train semantic-controller"):
        load_semantic_controller(ModelSpec("semantic_controller", str(tmp_path / "none")), CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"encoder_fingerprint": "0" * 16}, "another"), ({"grid": 4}, "does not fit a semantic"), ({"size": 4}, "is no configuration of a")],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, steering, change, message) -> None:
    save_semantic_controller(steering.config, steering.parts, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        load_semantic_controller(ModelSpec("semantic_controller", str(tmp_path)), CPU)


def test_a_controller_made_for_another_unet_is_refused(steering, crops) -> None:
    tiny = load_inpainter(ModelSpec("inpainter"), CPU)
    with pytest.raises(ValueError, match="widths"):
        SemanticDenoiser(tiny, steering, images=crops[0], hard=crops[1], context=tiny.encode_text(["", ""]))
