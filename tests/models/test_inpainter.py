from __future__ import annotations

import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_diffaug.edit.options import InpaintOptions, Noise, Run, SoftEdge
from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models import inpainter
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec, spec_of
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

CPU = torch.device("cpu")


def test_the_embedded_model_also_loads_in_a_pipeline_of_diffusers() -> None:
    from diffusers import StableDiffusionInpaintPipeline

    from monai_diffaug.models.registry import tiny_folder

    pipeline = StableDiffusionInpaintPipeline.from_pretrained(str(tiny_folder("inpainter")), local_files_only=True)
    ours = load_inpainter(ModelSpec("inpainter", "tiny"), CPU)
    assert pipeline.unet.config.in_channels == 9 and ours.takes_mask
    assert torch.equal(pipeline.unet.conv_in.weight.float(), ours.unet.conv_in.weight)


def test_a_local_folder_touches_no_network(random_inpainter, monkeypatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("network touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)
    assert (model.factor, model.size_px, model.takes_mask) == (4, 64, True)


def test_a_missing_part_is_named_with_the_command_that_fetches_it(random_inpainter, tmp_path) -> None:
    shutil.copytree(random_inpainter, tmp_path / "m")
    (tmp_path / "m/unet/config.json").unlink()
    with pytest.raises(ModelSourceError, match=r"unet/config.json is missing.*hf download"):
        load_inpainter(ModelSpec("inpainter", str(tmp_path / "m")), CPU)


def test_truncated_weights_are_refused(random_inpainter, tmp_path) -> None:
    shutil.copytree(random_inpainter, tmp_path / "m")
    weights = tmp_path / "m/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded.*fetch the folder again"):
        load_inpainter(ModelSpec("inpainter", str(tmp_path / "m")), CPU)


def test_a_source_that_is_neither_path_nor_hub_id_is_refused() -> None:
    with pytest.raises(ModelSourceError, match="no such file or folder.*'tiny'"):
        load_inpainter(ModelSpec("inpainter", "./nothing/here/at-all"), CPU)


def test_offline_a_hub_id_names_the_command_with_its_revision(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelSourceError, match="HF_HUB_OFFLINE.*hf download org/name --revision abc"):
        load_inpainter(ModelSpec("inpainter", "org/name@abc"), CPU)


def test_the_parts_of_a_live_pipeline_are_used_themselves(random_inpainter) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    pipeline = StableDiffusionInpaintPipeline.from_pretrained(random_inpainter)
    assert load_inpainter(spec_of("inpainter", pipeline), CPU).unet is pipeline.unet


def test_an_object_without_the_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear without vae"):
        load_inpainter(spec_of("inpainter", torch.nn.Linear(1, 1)), CPU)


def test_a_text_is_encoded_once(random_inpainter, monkeypatch) -> None:
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)
    calls = []
    model.text_encoder.register_forward_hook(lambda *args: calls.append(1))
    first = model.encode_text(["a mass", "", "a mass"])
    second = model.encode_text(["", "a mass"])
    assert len(calls) == 1 and torch.equal(first[0], second[1]) and torch.equal(first[0], first[2])


@pytest.mark.slow
def test_the_real_sd15_inpainting_architecture_repaints_one_slice(tmp_path: Path, random_inpainter) -> None:
    """Random weights in the architecture of stable-diffusion-inpainting (860 M UNet, 84 M VAE), 64 px, one step."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from monai_diffaug.models.inpainter import Inpainter

    torch.manual_seed(0)
    with torch.device("cpu"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
        unet = UNet2DConditionModel(sample_size=8, in_channels=9, cross_attention_dim=768).to(torch.bfloat16)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
            )
        )
    tokenizer = load_inpainter(ModelSpec("inpainter", random_inpainter), CPU).tokenizer
    model = Inpainter(vae.to(torch.bfloat16), unet, text.to(torch.bfloat16), tokenizer, DDIMScheduler())
    assert sum(p.numel() for p in unet.parameters()) > 859e6 and model.factor == 8
    image = torch.rand(1, 80, 80)
    mask = torch.zeros(1, 80, 80)
    mask[:, 20:50, 30:50] = 1
    edit = DiffusionLocalInpaint(model, num_inference_steps=1, guidance_scale=1.0, options=InpaintOptions(run=Run(dtype="bfloat16"))).apply(
        image, mask, "lesion", seed=1
    )
    assert edit.record["applied"] is True and torch.isfinite(edit.image).all()
    assert torch.equal(edit.image[0, :5], image[0, :5])


@pytest.fixture
def tiny_vae_folder(random_inpainter: str, tmp_path: Path) -> Path:
    """The random inpainter with an AutoencoderTiny of random weights in the place of its VAE."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
        scaling_factor=0.5,
    )
    folder = tmp_path / "tiny_vae"
    shutil.copytree(random_inpainter, folder)
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    return folder


def test_an_autoencoder_without_a_distribution_encodes_and_decodes(tiny_vae_folder: Path) -> None:
    model = load_inpainter(ModelSpec("inpainter", str(tiny_vae_folder)), CPU)
    assert type(model.vae).__name__ == "AutoencoderTiny" and (model.factor, model.size_px) == (4, 64)
    images = torch.rand(2, 3, 64, 48) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images)
        expected = model.vae.encode(images).latents
        decoded = model.decode(latents)
        picture = model.vae.decode(expected).sample
    assert latents.shape == (2, 4, 16, 12) and decoded.shape == images.shape
    torch.testing.assert_close(latents, 0.5 * expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded, picture, rtol=0, atol=1e-5)


def test_an_edit_with_an_autoencoder_tiny_stays_inside_the_mask(tiny_vae_folder: Path) -> None:
    image, mask = torch.rand(1, 64, 64), torch.zeros(1, 64, 64)
    mask[:, 20:40, 20:44] = 1
    edit = DiffusionLocalInpaint(
        str(tiny_vae_folder), num_inference_steps=2, options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=0))
    ).apply(image, mask, "a cyst", seed=1)
    changed = torch.as_tensor(edit.image) != image
    assert edit.record["applied"] and bool(changed[mask > 0].any()) and not bool(changed[mask == 0].any())


def test_the_channels_last_layout_does_not_leave_the_vae() -> None:
    model = load_inpainter(ModelSpec("inpainter"), CPU)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images)
        decoded = model.decode(latents)
        expected = model.vae.encode(images).latent_dist.mode() * model.scaling_factor
    assert latents.is_contiguous() and decoded.is_contiguous()
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded, model.vae.decode(expected / model.scaling_factor).sample, rtol=0, atol=1e-5)


@pytest.fixture
def pipeline(random_inpainter: str) -> Any:
    from diffusers import StableDiffusionInpaintPipeline

    return StableDiffusionInpaintPipeline.from_pretrained(random_inpainter)


def edited(model: object, **options: object) -> torch.Tensor:
    image, mask = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 64, 64)
    mask[:, 20:40, 20:40] = 1
    return DiffusionLocalInpaint(model, num_inference_steps=2, **options).apply(image, mask, "a mass", seed=3).image


def test_a_change_of_a_live_pipeline_between_two_edits_has_an_effect(pipeline) -> None:
    from diffusers import EulerDiscreteScheduler

    images = [edited(pipeline)]
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    images.append(edited(pipeline))
    with torch.no_grad():  # as a LoRA or a textual inversion does
        for parameter in pipeline.text_encoder.parameters():
            parameter.mul_(1.5)
    images.append(edited(pipeline))
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])


def test_the_advice_of_the_inversion_error_works_for_a_used_pipeline(pipeline) -> None:
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match="pipeline.scheduler = DDIMScheduler.from_config"):
        edited(pipeline, options=InpaintOptions(noise=Noise(source="inverted")))
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, thresholding=False)
    assert bool(torch.isfinite(edited(pipeline, options=InpaintOptions(noise=Noise(source="inverted")))).all())


def test_a_textual_inversion_of_several_vectors_is_encoded_as_in_the_pipeline(pipeline) -> None:
    vectors = torch.randn(3, pipeline.text_encoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    pipeline.load_textual_inversion({"<lesion>": vectors})
    expected = pipeline.encode_prompt("a <lesion> here", CPU, 1, False)[0]
    assert torch.allclose(load_inpainter(spec_of("inpainter", pipeline), CPU).encode_text(["a <lesion> here"]), expected, atol=1e-5)


def test_a_unet_with_other_conditions_or_another_text_width_is_refused(pipeline) -> None:
    from diffusers import UNet2DConditionModel

    config = pipeline.unet.config
    xl = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80}
    pipeline.unet = UNet2DConditionModel.from_config({**config, **xl})
    with pytest.raises(ValueError, match="more than a text.*text_time.*unload_ip_adapter"):
        load_inpainter(spec_of("inpainter", pipeline), CPU)
    pipeline.unet = UNet2DConditionModel.from_config({**config, "cross_attention_dim": 64})
    with pytest.raises(ValueError, match="text states of width 64.*gives 128"):
        load_inpainter(spec_of("inpainter", pipeline), CPU)


def test_texts_are_encoded_while_another_thread_empties_the_cache(random_inpainter, monkeypatch) -> None:
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)
    expected = model.encode_text(["kept", "new"])
    model.forget_prompts()
    model.encode_text(["kept"])
    model.text_encoder.register_forward_hook(lambda *args: model.forget_prompts())
    assert torch.allclose(model.encode_text(["kept", "new"]), expected, atol=1e-5)


def test_a_text_that_is_too_long_is_logged_once(random_inpainter, caplog) -> None:
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)
    limit, long = model.tokenizer.model_max_length, "mass " * 60
    for _ in range(2):
        model.encode_text(["a mass", long, ("mass " * (limit - 2)).strip()])
    messages = [record.getMessage() for record in caplog.records if record.name == "monai_diffaug.models.inpainter"]
    assert len(messages) == 1 and f"the first {limit} tokens" in messages[0] and "mass mass" in messages[0]


def test_threads_that_encode_many_texts_do_not_disturb_each_other(random_inpainter, monkeypatch) -> None:
    monkeypatch.setattr(inpainter, "PROMPT_CACHE_SIZE", 3)
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)

    def shapes(thread: int) -> set[tuple[int, ...]]:
        long = "mass " * 60
        texts = ([f"mass {(7 * thread + i) % 9}", f"cyst {(thread + 3 * i) % 5} {long * (i % 2)}", ""] for i in range(30))
        return {tuple(model.encode_text(each).shape) for each in texts}

    with ThreadPoolExecutor(6) as pool:
        assert set().union(*pool.map(shapes, range(6))) == {(3, 40, 128)}
