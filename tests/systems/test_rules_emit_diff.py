"""EMIT-Diff across its parts: edges and outline reach both branches of the ControlNet, prompts mix, one label for real and synthetic."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from monai.data import list_data_collate
from monai.transforms import Compose, RandFlipd, RandRotate90d, RandSpatialCropd
from torch import Tensor

from monai_diffaug import presets
from monai_diffaug.edit.options import ControlNet
from monai_diffaug.masks.edges import outline
from monai_diffaug.masks.patch_grid import grid_shape, upsampled
from monai_diffaug.models.controlnet import build_controlnet
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec, shared_model
from monai_diffaug.transforms.edge_map import EdgeMap
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.patch_merge import RandPatchMerge, RandPatchMerged, RandSynthetic
from monai_diffaug.transforms.patch_merge_loss import PatchMergeLoss
from monai_diffaug.transforms.text_prompt import TextPromptd

ONE, TWO = "ultrasound of breast, malignant mass", "ultrasound of breast, benign mass"


@pytest.fixture
def model(random_inpainter: str) -> Inpainter:
    """The one that the transforms of this process use."""
    return shared_model(ModelSpec("inpainter", random_inpainter), "cpu", load_inpainter)


def sample() -> dict[str, Tensor]:
    image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) * 80 + 60
    label = torch.zeros(1, 64, 64)
    label[:, 20:38, 26:42] = 1
    return {"image": image - 50 * label, "label": label}


def test_the_preset_has_the_authors_sampler_settings() -> None:
    inpaint = next(t for t in presets.emit_diff(modality="CT").transforms if isinstance(t, DiffusionLocalInpaintd)).inpaint
    settings = inpaint.settings
    assert (settings.num_inference_steps, settings.guidance_scale, settings.options.control.scale) == (20, 9.0, 1.0)
    assert settings.options.control.source.source == "tiny" and settings.options.soft_edge.hard


def test_both_branches_of_every_step_are_shown_the_edges_with_the_outline_of_the_label_drawn_in(model, random_inpainter) -> None:
    network = build_controlnet(model.unet, model.factor).eval()
    shown: list[tuple[Tensor, Tensor, float]] = []
    hook = network.register_forward_pre_hook(
        lambda module, args, kwargs: shown.append(
            (kwargs["controlnet_cond"].clone(), kwargs["encoder_hidden_states"].clone(), kwargs["conditioning_scale"])
        ),
        with_kwargs=True,
    )
    preset = presets.emit_diff(modality="ultrasound", model=random_inpainter, control=ControlNet(network), num_inference_steps=2, prob=1.0)
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    result = preset.set_random_state(0)(sample())
    hook.remove()
    edges = torch.as_tensor(EdgeMap()(sample()["image"], sample()["label"]))
    drawn = outline(sample()["label"][None])[0].bool()
    assert len(shown) == 2 and edges[drawn].min() == 1 and edges[~drawn].any()
    for control, context, scale in shown:
        assert torch.equal(control, edges.expand(2, 3, 64, 64)) and scale == 1.0
        assert torch.allclose(context[0], model.encode_text([""])[0], atol=1e-6) and not torch.allclose(context[0], context[1])
    assert bool(result["mask"].all()) and torch.equal(result["label"], sample()["label"])
    assert all(torch.equal(before[name], value) for name, value in model.unet.state_dict().items())  # the UNet is locked


def test_a_mix_of_prompts_goes_through_the_dictionary_transform_as_a_mix_of_text_states(model, random_inpainter, runs) -> None:
    transform = DiffusionLocalInpaintd("image", mask_key="label", model=random_inpainter, num_inference_steps=1, guidance_scale=1.0)
    mix = [(3.0, ONE), (1.0, TWO)]
    edited = [transform.edit({**sample(), "prompt": prompt}, seed=4) for prompt in (mix, ONE)]
    states = model.encode_text([ONE, TWO])
    context = runs[0][0].calls[0][2]
    assert len(context) == 1 and torch.allclose(context[0], 0.75 * states[0] + 0.25 * states[1], atol=1e-5)
    assert not torch.allclose(edited[0]["image"], edited[1]["image"], atol=1e-3)
    array = DiffusionLocalInpaint(random_inpainter, num_inference_steps=1, guidance_scale=1.0)
    assert torch.equal(edited[0]["image"], array.apply(sample()["image"], sample()["label"], mix, seed=4).image)
    assert edited[0]["image_diffaug"]["prompt"] == f"3 * {ONE} + 1 * {TWO}" and edited[0]["prompt"] == mix


def test_samples_with_mixed_prompts_collate(random_inpainter) -> None:
    inpaint = DiffusionLocalInpaintd("image", mask_key="label", model=random_inpainter, num_inference_steps=1, prob=0.5)
    pipeline = Compose([TextPromptd("prompt", modality="ultrasound", mix=2, prob=0.5), inpaint]).set_random_state(0)
    batch = [pipeline(sample()) for _ in range(8)]
    applied = [each["image_diffaug"]["applied"] for each in batch]
    picked = [batch[applied.index(False)], batch[applied.index(True)]]
    assert picked[1]["image_diffaug"]["prompt"].count(" * ultrasound of ") == 2
    collated = list_data_collate(picked)
    assert collated["image"].shape == (2, 1, 64, 64) and collated["image_diffaug"]["applied"].tolist() == [False, True]


def test_real_and_synthetic_share_one_label_and_one_spatial_augmentation() -> None:
    rng = np.random.RandomState(0)
    label = torch.from_numpy(rng.randint(0, 4, (1, 60, 72)).astype(np.float32))
    keys = ["image", "synthetic", "label"]
    pipeline = Compose(
        [
            RandFlipd(keys, prob=0.5, spatial_axis=0),
            RandRotate90d(keys, prob=0.5),
            RandSpatialCropd(keys, (48, 48), random_size=False),
            RandPatchMerged("image", merge_mask_key="real"),
        ]
    )
    shares = []
    for seed in range(8):
        out = pipeline.set_random_state(seed)({"image": 100 * label + 1, "synthetic": 100 * label + 2, "label": label})
        image = torch.as_tensor(out["image"])
        assert torch.equal((image / 100).floor(), torch.as_tensor(out["label"]))
        assert torch.equal(image % 100 == 1, torch.as_tensor(out["real"]).bool())
        shares.append(float(torch.as_tensor(out["real"]).float().mean()))
    assert min(shares) > 0 and max(shares) < 1 and float(np.mean(shares)) == pytest.approx(0.6, abs=0.12)


@pytest.mark.parametrize("spatial", [(50, 70), (384, 384), (33, 20, 7)])
def test_the_merging_mask_is_a_nearest_upsampling_of_bernoulli_cells(spatial: tuple[int, ...]) -> None:
    shape = grid_shape(spatial, 64 / 384)
    assert shape == tuple(min(6, n) for n in spatial)
    cells = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0)) < 0.6
    grown = upsampled(cells, spatial)[0, 0]
    index = np.ix_(*(np.arange(n) * k // n for n, k in zip(spatial, shape, strict=True)))
    assert np.array_equal(grown.numpy(), cells[0].numpy()[index])
    merge = RandPatchMerge().merge(torch.ones(1, *spatial), torch.zeros(1, *spatial), seed=3)
    assert torch.equal(torch.as_tensor(merge.image), torch.as_tensor(merge.mask).float())


def test_alpha_patch_and_ratio_are_the_papers_everywhere() -> None:
    for form in (RandPatchMerge, RandPatchMerged, PatchMergeLoss):
        defaults = {name: p.default for name, p in inspect.signature(form).parameters.items()}
        assert defaults["alpha"] == 0.6 and defaults["patch_fraction"] == pytest.approx(64 / 384)
    assert RandSynthetic().ratio == 50
