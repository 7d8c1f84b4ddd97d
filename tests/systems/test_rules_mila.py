"""MILA-TMGDiff across its parts: MedSAM's mask, the drawn prompt, local noise kept outside the mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_diffaug import presets
from monai_diffaug.models.medsam import MedSAM
from monai_diffaug.sampling.inpaint_latents import inpaint_latents
from monai_diffaug.sampling.noise import local_noise
from monai_diffaug.training.embedded.architectures import build_scheduler
from monai_diffaug.transforms.medsam_mask import MedSAMMask


class CountingMedSAM(MedSAM):
    """Answers with the box; remembers how many slices each call of the encoder got, and every box."""

    def __init__(self) -> None:
        self.encoded: list[int] = []
        self.decoded: list[int] = []

    def encode(self, slices: Tensor, batch_size: int = 4) -> Tensor:
        self.encoded.append(len(slices))
        return slices.mean((1, 2, 3))[:, None]

    def decode(self, embeddings: Tensor, boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        self.decoded.append(len(boxes_xyxy))
        masks = torch.zeros(len(embeddings), *size_hw, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes_xyxy.round().int().tolist(), strict=True):
            mask[y0 : y1 + 1, x0 : x1 + 1] = True
        return masks, torch.ones(len(masks))


def volume(slices: int = 12) -> tuple[Tensor, Tensor]:
    """A volume and a label with three parts in each of its middle slices."""
    label = torch.zeros(1, 64, 64, slices)
    for row in (5, 25, 45):
        label[:, row : row + 8, 20:30, 2:-3] = 1
    return torch.full((1, 64, 64, slices), 0.9), label


def test_a_slice_is_embedded_once_and_the_embedding_serves_all_its_boxes() -> None:
    medsam = CountingMedSAM()
    mask = MedSAMMask(medsam, jitter_px=0)(*volume())
    assert medsam.encoded == [4, 3] and medsam.decoded == [12, 9]
    assert torch.equal(mask, volume()[1].to(torch.uint8))


def test_propagation_embeds_each_slice_once_in_batches_and_only_decodes_in_sequence() -> None:
    medsam = CountingMedSAM()
    mask = MedSAMMask(medsam, jitter_px=0, propagate=True, batch_size=4)(*volume())
    assert bool(mask.any(1).any(1).all())
    assert sum(medsam.encoded) == 12 and medsam.encoded[0] == 1 and len(medsam.encoded) <= 1 + 2 + 2
    assert medsam.decoded == [3] * 12


def test_the_preset_has_the_settings_under_which_the_laws_hold() -> None:
    mask, prompt, inpaint = presets.mila_tmgdiff(modality="CT").transforms
    assert mask.masker.jitter_px == 20 and mask.masker.gate.min_iou == 0.5 and mask.masker.box == "label"
    assert inpaint.inpaint.settings.guidance_scale == 1.0 and inpaint.inpaint.settings.options.noise.source == "inverted"
    assert prompt.text.modality == "CT"


def test_the_prompt_comes_from_the_transforms_own_random_state_and_stays_in_sample_and_record(random_inpainter) -> None:
    image, label = torch.rand(1, 64, 64) * 80, torch.zeros(1, 64, 64)
    label[:, 20:40, 20:40] = 1
    prompts = []
    for global_seed in (0, 1):
        np.random.seed(global_seed)
        torch.manual_seed(global_seed)
        preset = presets.mila_tmgdiff(modality="MRI", model=random_inpainter, medsam=CountingMedSAM(), num_inference_steps=1, prob=1.0)
        prompts.append(preset.set_random_state(3)({"image": image, "label": label}))
    assert prompts[0]["prompt"] == prompts[1]["prompt"] == prompts[0]["image_diffaug"]["prompt"]
    assert prompts[0]["prompt"].startswith("MRI of ") and prompts[0]["prompt"].count(",") >= 1
    assert torch.equal(prompts[0]["image"], prompts[1]["image"])


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_outside_the_mask_every_step_holds_the_original_at_its_noise_level_with_the_noise_that_is_not_local(strength: float) -> None:
    """z_T = md q(z0, T, eps_loc) + (1 - md) q(z0, T, eps), then z = md step + (1 - md) q(z0, t, eps)."""
    generator = torch.Generator().manual_seed(0)
    clean, eps, eta = torch.randn(3, 1, 4, 12, 12, generator=generator)
    mask = torch.zeros(1, 1, 12, 12)
    mask[..., 3:8, 4:9] = 1
    scheduler = build_scheduler()
    calls: list[tuple[Tensor, Tensor]] = []

    def denoise(latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        calls.append((latents.clone(), timestep))
        return 0.3 * latents

    noise = local_noise(eps, eta, scale_g=1.0, mask=mask)
    result = inpaint_latents(
        denoise, scheduler, clean=clean, noise=noise, mask=mask, context=torch.zeros(1, 1, 1), num_inference_steps=5, strength=strength
    )
    outside = (mask == 0).expand_as(clean)
    assert len(calls) == (5 if strength == 1 else 3)
    for latents, timestep in calls:
        expected = scheduler.add_noise(clean, eps, timestep[None])
        assert torch.allclose(latents[outside], expected[outside], atol=1e-5)
    start, first = calls[0]
    assert torch.allclose(start[~outside], scheduler.add_noise(clean, eta, first[None])[~outside], atol=1e-5)
    assert torch.equal(result[outside], clean[outside])
