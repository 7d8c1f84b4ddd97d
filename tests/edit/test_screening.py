"""Refusing candidates by their latents: what is measured, and that the split of sampling and decoding changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from monai_diffaug.edit.denoise import Candidate
from monai_diffaug.edit.screening import CandidateScreen, latent_core, screen_dice
from monai_diffaug.edit.validation_options import Screen
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.latent_screen import LatentScreen
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

PROMPT = "ultrasound of breast, malignant mass"


def picture(size: tuple[int, ...] = (70, 90), seed: int = 0) -> Tensor:
    return torch.rand(1, *size, generator=torch.Generator().manual_seed(seed)) * 100 + 20


def square_mask(size: tuple[int, ...] = (70, 90), side: int = 14) -> Tensor:
    mask = torch.zeros(1, *size)
    mask[:, 30 : 30 + side, 40 : 40 + side] = 1
    return mask


@pytest.fixture
def model(random_inpainter: str) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))


@pytest.fixture
def fast(random_inpainter: str) -> dict[str, Any]:
    return {"model": random_inpainter, "num_inference_steps": 2}


def candidate_of(fast: dict[str, Any], mask: Tensor) -> Candidate:
    (sampled,) = DiffusionLocalInpaint(**fast).denoise_batch([picture(tuple(mask.shape[1:]))], [mask], [PROMPT], seeds=[4])
    assert isinstance(sampled.outcome, Candidate)
    return sampled.outcome


def everything(latents: Tensor) -> Tensor:
    return torch.full_like(latents[:, :1], 9.0)


def test_a_transform_in_two_parts_gives_the_same_edits_and_records(fast) -> None:
    inpaint = DiffusionLocalInpaint(**fast)
    images, masks = [picture(), picture(seed=1)], [square_mask(), square_mask() * 0]
    labels = [torch.zeros(1, 70, 90, dtype=torch.uint8)] * 2
    whole = inpaint.apply_batch(images, masks, [PROMPT] * 2, labels, seeds=[1, 2])
    sampled = inpaint.denoise_batch(images, masks, [PROMPT] * 2, labels, seeds=[1, 2])
    for one, other in zip(whole, inpaint.finish_batch(sampled), strict=True):
        assert torch.equal(one.image, other.image) and torch.equal(one.label, other.label) and one.record == other.record
    left = inpaint.leave(sampled[0])
    assert left.image is images[0] and left.label is labels[0]
    of_the_result = {name: whole[0].record[name] for name in ("contrast", "cnr", "size_mm")}
    assert {**left.record, "applied": True, "reason": "", **of_the_result} == whole[0].record


def test_no_candidate_is_decoded_before_it_is_finished(fast, monkeypatch) -> None:
    decode, decoded = Inpainter.decode, []
    monkeypatch.setattr(Inpainter, "decode", lambda self, z: (decoded.append(len(z)), decode(self, z))[1])
    inpaint = DiffusionLocalInpaint(**fast)
    sampled = inpaint.denoise_batch([picture()], [square_mask()], [PROMPT], seeds=[1])
    assert decoded == []
    inpaint.finish_batch(sampled)
    assert decoded == [1]


def test_the_dice_is_that_of_the_mask_at_latent_size(fast) -> None:
    candidate = candidate_of(fast, square_mask(side=16))
    target = latent_core(torch.stack([patch.core for patch in candidate.patches]), 4)
    area, whole = int(target.sum()), target.numel()

    def right(latents: Tensor) -> Tensor:
        return target.float() * 18 - 9

    def half(latents: Tensor) -> Tensor:
        return (target & (torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.5)).float() * 18 - 9

    assert 0 < area < whole
    assert screen_dice(LatentScreen(right), 4, candidate) == 1
    assert screen_dice(LatentScreen(everything), 4, candidate) == pytest.approx(2 * area / (area + whole))
    assert screen_dice(LatentScreen(lambda z: -everything(z)), 4, candidate) == 0
    assert 0.5 < screen_dice(LatentScreen(half), 4, candidate) < 0.8


def test_slices_of_a_volume_count_by_their_area_in_the_image(fast) -> None:
    mask = torch.zeros(1, 70, 90, 4)
    mask[:, 20:60, 20:60, 1] = 1
    mask[:, 30:40, 30:40, 2] = 1
    candidate = candidate_of(fast, mask)
    sides = [patch.roi.side for patch in candidate.patches]
    target = latent_core(torch.stack([patch.core for patch in candidate.patches]), 4)

    def only(index: int) -> LatentScreen:
        keep = torch.zeros_like(target)
        keep[index] = target[index]
        return LatentScreen(lambda z: keep.float() * 18 - 9)

    area = [float(target[i].sum()) * sides[i] ** 2 for i in (0, 1)]
    assert sides[0] > sides[1]
    for i in (0, 1):
        assert screen_dice(only(i), 4, candidate) == pytest.approx(2 * area[i] / (area[i] + sum(area)), rel=1e-5)


def test_a_mask_that_covers_no_latent_pixel_by_half_keeps_what_it_touches() -> None:
    core = torch.zeros(2, 1, 16, 16)
    core[0, :, 3:5, 3:5] = 1
    core[1, :, 0:9, 0:8] = 1
    at_latents = latent_core(core, 4)
    assert at_latents[0, 0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert at_latents[1, 0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_what_cannot_be_judged_passes_and_decoding_says_why(fast, model) -> None:
    screen = CandidateScreen(Screen(lambda z: -everything(z), 0.5))
    candidate = candidate_of(fast, square_mask())
    assert screen.score(model, candidate) == 0
    assert screen.score(model, candidate._replace(latents=candidate.latents * float("nan"))) == 1
    assert screen.score(model, candidate._replace(patches=[], latents=candidate.latents[:0])) == 1


def test_the_screen_must_belong_to_the_inpainters_vae(fast, model) -> None:
    candidate = candidate_of(fast, square_mask())
    with pytest.raises(ValueError, match="another VAE"):
        CandidateScreen(Screen(LatentScreen(everything, fingerprint="0123"))).score(model, candidate)
