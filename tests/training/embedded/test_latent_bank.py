from __future__ import annotations

import numpy as np
import torch

from monai_diffaug.masks.shapes import largest_component
from monai_diffaug.training.embedded.latent_bank import MaskedCropSampler, build_chunk
from monai_diffaug.training.embedded.train_vae import build_vae


def test_lesion_prompts_lie_on_lesions_and_normal_prompts_off_them(real_data) -> None:
    sampler = MaskedCropSampler("validation", 0, ("breast_ultrasound",))
    kinds = set()
    for _ in range(30):
        sample, mask, finding = sampler.draw()
        overlap = (mask & (sample.label > 0)).sum() / mask.sum()
        kinds.add(finding)
        assert overlap == 1 if finding.endswith("mass") else overlap < 0.05
    assert kinds == {"benign mass", "malignant mass", "normal tissue"}


def test_a_chunk_has_latents_of_image_and_masked_image_with_their_captions(real_data) -> None:
    chunk = build_chunk(build_vae(), MaskedCropSampler("validation", 0), 3)
    assert chunk["latents"].shape == chunk["masked"].shape == (3, 4, 32, 32)
    assert chunk["mask"].shape == (3, 1, 32, 32) and set(chunk["mask"].unique().tolist()) == {0.0, 1.0}
    assert len(chunk["captions"]) == 3 and not torch.equal(chunk["latents"], chunk["masked"])


def test_the_largest_part_is_kept() -> None:
    mask = np.zeros((9, 9), bool)
    mask[0, 0], mask[4:8, 4:8] = True, True
    assert largest_component(mask).sum() == 16
