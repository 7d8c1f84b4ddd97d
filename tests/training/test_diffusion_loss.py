from __future__ import annotations

import diffusers
import pytest
import torch

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.diffusion_loss import EncodedCrops, denoising_loss, encode_crops, forward_process, lesion_weighted_loss

KINDS = ("v_prediction", "epsilon", "sample")


def crops(n: int = 2) -> EncodedCrops:
    generator = torch.Generator().manual_seed(0)
    latents, masked = torch.randn(2, n, 4, 16, 16, generator=generator)
    mask = torch.zeros(n, 1, 16, 16)
    mask[..., 4:10, 4:10] = 1
    return EncodedCrops(latents, mask, masked)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_under_the_mask_weigh_twice(kind):
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    target, inside, outside = torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)
    inside[..., :2], outside[..., 2:] = 1.0, 1.0
    alpha = torch.tensor([0.5])
    ratio = lesion_weighted_loss(inside, target, mask, alpha, kind) / lesion_weighted_loss(outside, target, mask, alpha, kind)
    assert float(ratio) == pytest.approx(2)


@pytest.mark.parametrize(
    ("kind", "alpha", "weight"),
    [
        ("epsilon", 0.99, 5 / 99),
        ("epsilon", 0.3, 1.0),
        ("sample", 0.99, 5.0),
        ("sample", 0.3, 3 / 7),
        ("v_prediction", 0.99, 1.0),  # the steps of little noise paint the texture
        ("v_prediction", 0.0, 1.0),  # a zero-terminal-SNR schedule learns its last step
    ],
)
def test_the_weight_of_a_step_is_that_of_min_snr_and_1_for_the_velocity(kind, alpha, weight):
    one, mask = torch.ones(1, 4, 2, 2), torch.zeros(1, 1, 2, 2)
    assert float(lesion_weighted_loss(one, 0 * one, mask, torch.tensor([alpha]), kind)) == pytest.approx(weight, rel=1e-3)


def test_an_unknown_prediction_type_is_refused():
    one = torch.ones(1, 4, 2, 2)
    with pytest.raises(ValueError, match="must be v_prediction, epsilon or sample, got 'flow'"):
        lesion_weighted_loss(one, one, one[:, :1], torch.tensor([0.5]), "flow")


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_has_no_loss_and_another_has(random_inpainter, kind):
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    model.scheduler = diffusers.DDIMScheduler.from_config({**model.scheduler.config, "prediction_type": kind})
    encoded, noise, steps = crops(), torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    process = forward_process(model.scheduler)
    perfect = {"v_prediction": process.get_velocity(encoded.latents, noise, steps), "epsilon": noise, "sample": encoded.latents}[kind]
    context = torch.zeros(2, 1, 8)

    def loss(answer: torch.Tensor) -> float:
        return float(denoising_loss(model, lambda latents, timestep, context: answer, encoded, context, steps, noise))

    assert loss(perfect) == 0 and loss(perfect + 0.1) > 0


@pytest.mark.parametrize("sampler", ["EulerDiscreteScheduler", "PNDMScheduler"])
def test_the_noising_does_not_depend_on_the_sampler_that_the_folder_names(random_inpainter, sampler):
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    inputs, steps, noise = [], torch.tensor([0, 999]), torch.randn(2, 4, 16, 16)

    def denoise(latents, timestep, context):
        inputs.append(latents)
        return latents[:, :4]

    config = model.scheduler.config
    for name in ("DDIMScheduler", sampler):
        model.scheduler = getattr(diffusers, name).from_config(config)
        denoising_loss(model, denoise, crops(), torch.zeros(2, 1, 8), steps, noise)
    assert torch.equal(inputs[0], inputs[1]) and inputs[0].shape == (2, 9, 16, 16)


def test_the_masked_latents_are_those_of_the_greyed_out_crop(random_inpainter, random_inpainter_4ch):
    images, hidden = torch.rand(2, 3, 64, 64) * 2 - 1, torch.zeros(2, 1, 64, 64)
    hidden[..., 20:23, 20:23] = 1
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    encoded = encode_crops(model, images, hidden)
    assert torch.allclose(encoded.masked, model.encode(images * (1 - hidden)), atol=1e-5)
    assert torch.allclose(encoded.latents, model.encode(images), atol=1e-5) and encoded.mask.sum() > 0
    plain = encode_crops(load_inpainter(ModelSpec("inpainter", random_inpainter_4ch), torch.device("cpu")), images, hidden)
    assert torch.equal(plain.latents, plain.masked)
