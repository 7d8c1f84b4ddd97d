"""DiffAug across its parts: where a lesion is painted, single-step generation, verdict, label and counters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from torch import Tensor

from monai_diffaug import presets
from monai_diffaug.edit.options import InpaintOptions, SoftEdge
from monai_diffaug.edit.validation_options import Screen, Validator
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.medsam import MedSAM
from monai_diffaug.models.validator import TINY_CONFIG, LatentSegmenter
from monai_diffaug.training import validator_loss
from monai_diffaug.training.embedded.architectures import build_scheduler
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.medsam_mask import MedSAMMaskd
from monai_diffaug.transforms.place_mask import PlaceMaskd

PROMPT = "endoscopy of colon, polyp"


class EllipseInBox(MedSAM):
    """A MedSAM that finds an ellipse in each box."""

    def __init__(self) -> None:
        pass

    def encode(self, slices: Tensor, batch_size: int = 4) -> Tensor:
        return torch.zeros(len(slices), 1)

    def decode(self, embeddings: Tensor, boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        ys, xs = torch.meshgrid(torch.arange(size_hw[0]), torch.arange(size_hw[1]), indexing="ij")
        masks = [
            ((xs - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2 + ((ys - (y0 + y1) / 2) / ((y1 - y0) / 2)) ** 2 <= 1
            for x0, y0, x1, y1 in boxes_xyxy.tolist()
        ]
        return torch.stack(masks), torch.ones(len(masks))


def normal_image(size: tuple[int, ...] = (80, 96)) -> Tensor:
    return torch.rand(1, *size, generator=torch.Generator().manual_seed(0)) * 60 + 80


def anything(images: Tensor) -> Tensor:
    return torch.ones_like(images[:, :1])


def lenient(segmenter: object = anything) -> LatentValidate:
    return LatentValidate(segmenter, 0.0, options=Validator(min_coverage=0.0, max_false_positive=1e9, min_change=0.0))


@pytest.mark.parametrize("size", [(80, 96), (80, 96, 5)])
def test_an_organ_that_medsam_outlines_is_where_a_lesion_goes(size: tuple[int, ...]) -> None:
    organs = torch.zeros(1, *size)
    organs[:, 12:70, 30:80] = 2
    organs[:, :10, :10] = 1
    organ = MedSAMMaskd("image", mask_key="organ", label_key="organs", label_value=2, model=EllipseInBox(), jitter_px=0)
    pipeline = Compose([organ, PlaceMaskd("image", region_key="organ", shape="ellipse", size_range=(0.15, 0.3))])
    corner_free = 0
    for seed in range(6):
        output = pipeline.set_random_state(seed)({"image": normal_image(size), "organs": organs})
        inside = output["organ"].bool()
        assert inside.any() and not inside[organs != 2].any() and output["mask"].any() and not output["mask"][~inside].any()
        corner_free += int((organs == 2).sum()) > int(inside.sum())
    assert corner_free == 6  # the ellipse, not its box


def test_masks_of_other_images_shapes_of_ones_own_and_a_users_mask_all_lead_to_a_lesion(random_inpainter) -> None:
    inpaint = DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=1)
    bank = np.zeros((60, 60), np.uint8)
    bank[20:34, 20:30] = 1
    mine = torch.zeros(1, 80, 96)
    mine[:, 30:44, 40:56] = 1
    sources = {"bank": PlaceMaskd("image", bank=[bank]), "blob": PlaceMaskd("image"), "ellipse": PlaceMaskd("image", shape="ellipse")}
    for source in (*sources.values(), lambda d: {**d, "mask": mine}):
        sample = {"image": normal_image(), "label": torch.zeros(1, 80, 96, dtype=torch.uint8), "prompt": PROMPT}
        edited = Compose([source, inpaint]).set_random_state(0)(sample)
        inside = edited["mask"].bool()
        assert edited["image_diffaug"]["applied"] and torch.equal(edited["label"].bool(), inside)
        assert bool((edited["image"] != sample["image"])[inside].any()) and not sample["label"].any()


def test_the_preset_uses_masks_seeds_and_thresholds_as_published() -> None:
    place, _, validate = presets.diffaug(modality="ultrasound").transforms
    assert place.place.shape == "blob" and place.label_key == "label"
    assert validate.on_reject == "retry" and validate.max_tries == 3 and validate.options.on_exhausted == "original"
    assert validate.dynamic is None
    assert validate.validator.min_dice == 0.7 and validate.validator.options == Validator()


def test_a_single_step_is_the_direct_estimate_of_the_clean_latents_from_pure_noise(random_inpainter, runs, monkeypatch) -> None:
    decode = Inpainter.decode
    decoded: list[Tensor] = []
    monkeypatch.setattr(Inpainter, "decode", lambda self, z: (decoded.append(z.clone()), decode(self, z))[1])
    mask = torch.zeros(1, 80, 96)
    mask[:, 30:50, 40:60] = 1
    single = DiffusionLocalInpaint(
        random_inpainter, num_inference_steps=1, guidance_scale=1.0, options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=0))
    )
    assert single.apply(normal_image(), mask, PROMPT, seed=1).record["applied"]
    ((denoise, _),) = runs
    ((given, timestep, _, velocity),) = denoise.calls
    start = given[:, :4]
    assert int(timestep) == 999 and float(start.std()) == pytest.approx(1, abs=0.1)
    # z0hat = sqrt(ab) z - sqrt(1 - ab) v = -v with ab = 0; Stable Diffusion's schedule ends at the first alpha, not at 1
    last = float(build_scheduler().final_alpha_cumprod)
    assert last > 0.999 and torch.allclose(decoded[0], last**0.5 * -velocity + (1 - last) ** 0.5 * start, atol=1e-4)


def test_the_label_is_the_mask_or_what_the_validator_found(random_inpainter) -> None:
    mask = torch.zeros(1, 80, 96)
    mask[:, 30:50, 40:60] = 1

    def left_half(images: Tensor) -> Tensor:
        output = torch.zeros_like(images[:, :1])
        output[..., : images.shape[-1] // 2] = 1
        return output

    labels = {}
    for refine in (False, True):
        transform = LatentValidated(
            "image",
            label_key="label",
            label_value=3,
            validator=Validator(refine_label=refine),
            model=lenient(left_half),
            inpaint=DiffusionLocalInpaintd("image", label_key="label", label_value=3, model=random_inpainter, num_inference_steps=1),
        )
        before = torch.zeros(1, 80, 96, dtype=torch.uint8)
        before[:, :5, :5] = 7
        sample = {"image": normal_image(), "mask": mask, "label": before, "prompt": PROMPT}
        result = transform.set_random_state(0)(sample)
        labels[refine] = result["label"]
        assert result["image_diffaug"]["accepted"] and bool((result["label"][:, :5, :5] == 7).all())
        assert transform.statistics == {"accepted": 1, "rejected": 0, "retried": 0}
    assert torch.equal(labels[False] == 3, mask.bool())
    output = labels[True] == 3
    assert output[:, 30:50, 40:49].all() and not output[:, 30:50, 51:60].any()


def test_a_retry_paints_with_another_seed_and_three_candidates_are_the_most(random_inpainter) -> None:
    seeds: list[int] = []

    class Seeds(DiffusionLocalInpaintd):
        def edit(self, data, *, seed, triggered=True):
            seeds.append(seed)
            return super().edit(data, seed=seed, triggered=triggered)

    inpaint = Seeds("image", label_key="label", model=random_inpainter, num_inference_steps=1)

    def blind(images: Tensor) -> Tensor:
        return torch.zeros_like(images[:, :1])

    transform = LatentValidated("image", label_key="label", model=blind, inpaint=inpaint, on_reject="retry")
    mask = torch.zeros(1, 80, 96)
    mask[:, 30:50, 40:60] = 1
    sample = {"image": normal_image(), "mask": mask, "label": torch.zeros(1, 80, 96), "prompt": PROMPT}
    result = transform.set_random_state(0)(sample)
    assert len(set(seeds)) == 3 and transform.statistics == {"accepted": 0, "rejected": 1, "retried": 2}
    assert torch.equal(result["image"], sample["image"]) and torch.equal(result["label"], sample["label"])


def test_rejected_candidates_are_rejected_before_they_are_decoded(random_inpainter, monkeypatch) -> None:
    decode, decoded, screened = Inpainter.decode, [], []
    monkeypatch.setattr(Inpainter, "decode", lambda self, z: (decoded.append(z.clone()), decode(self, z))[1])

    def third(latents: Tensor) -> Tensor:
        screened.append(latents.clone())
        return torch.full_like(latents[:, :1], 9.0 if len(screened) == 3 else -9.0)

    transform = LatentValidated(
        "image",
        label_key="label",
        model=lenient(),
        screen=Screen(third, min_dice=0.1, after=1.0),
        inpaint=DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=1),
        on_reject="retry",
    )
    mask = torch.zeros(1, 80, 96)
    mask[:, 30:50, 40:60] = 1
    sample = {"image": normal_image(), "mask": mask, "label": torch.zeros(1, 80, 96), "prompt": PROMPT}
    result = transform.set_random_state(0)(sample)
    assert len(screened) == 3 and len(decoded) == 1 and torch.equal(decoded[0], screened[2])
    assert result["image_diffaug"]["accepted"] and result["image_diffaug"]["tries"] == 3
    assert transform.statistics == {"accepted": 1, "rejected": 0, "retried": 2, "screened": 2}


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_the_validators_loss_is_that_of_the_noise_plus_that_of_z0hat(prediction_type: str, monkeypatch) -> None:
    """|eps - eps_th| + 1.0 |z0 - z0hat|, the first for the epsilon form alone, and nothing else without the mask's own terms."""
    monkeypatch.setattr(validator_loss, "DICE_WEIGHT", 0.0)
    torch.manual_seed(0)
    config = {**TINY_CONFIG, "size_px": 64, "condition_channels": [8, 16], "unet_channels": [16, 32], "condition_out_channels": 8}
    segmenter = LatentSegmenter({**config, "prediction_type": prediction_type})
    masks = torch.zeros(3, 1, 64, 64)
    masks[..., 20:40, 16:48] = 1
    z0, images = torch.randn(3, 4, 16, 16), torch.rand(3, 3, 64, 64) * 2 - 1
    inputs: list[tuple[Tensor, Tensor, Tensor]] = []
    hook = segmenter.register_forward_hook(lambda module, given, answer: inputs.append((given[1], given[2], answer)))
    probe = (torch.zeros(1, 4, 3, 3), torch.zeros(1))
    with torch.no_grad():
        loss = validator_loss.validator_loss(segmenter, z0, images, masks, probe, torch.Generator().manual_seed(0))
    hook.remove()
    ((z_t, timesteps, answer),) = inputs
    ab = segmenter.alphas[timesteps][:, None, None, None]
    noise = (z_t - ab.sqrt() * z0) / (1 - ab).sqrt()
    if prediction_type == "sample":
        expected = (z0 - answer).abs().mean()
    else:
        expected = (noise - answer).abs().mean() + 1.0 * (z0 - (z_t - (1 - ab).sqrt() * answer) / ab.sqrt()).abs().mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)
