from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from monai_diffaug.edit.decode import Outcome, decode
from monai_diffaug.edit.denoise import Candidate, Models, denoise
from monai_diffaug.edit.options import InpaintOptions, Region, RepaintSettings
from monai_diffaug.edit.stack import open_stack
from monai_diffaug.geometry.slices import Slab
from monai_diffaug.geometry.window import Window
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec

PROMPT = ((1.0, "ultrasound of breast, benign mass"),)


@pytest.fixture(scope="module")
def model(random_inpainter: str) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))


def settings_of(whole_slice: bool = False) -> RepaintSettings:
    return RepaintSettings(num_inference_steps=2, options=InpaintOptions(region=Region(whole_slice=whole_slice)))


def candidates_of(model: Inpainter, settings: RepaintSettings) -> list[Candidate]:
    """Four requests of different sizes; the mask of the second is empty."""
    stacks = []
    for seed, size in enumerate([(70, 90), (70, 90), (64, 60), (70, 90)]):
        image = torch.rand(1, *size, generator=torch.Generator().manual_seed(seed)) * 100 + 20
        mask = torch.zeros(1, *size)
        mask[:, 30:44, 40:52] = seed != 1
        stacks.append(open_stack(image, mask, None, Slab(0, 0, 1, 0), Window(0.0, 130.0), prompt=PROMPT, seed=seed))
    return denoise(Models(model), stacks, settings)


@pytest.mark.parametrize("whole_slice", [False, True])
def test_candidates_decoded_together_give_what_each_gives_alone(model: Inpainter, whole_slice: bool) -> None:
    settings = settings_of(whole_slice)
    candidates = candidates_of(model, settings)
    assert [len(candidate.patches) for candidate in candidates] == [1, 0, 1, 1]
    together, again = decode(model, candidates, settings), decode(model, candidates, settings)
    assert together[1] == Outcome(None, 0, "empty mask")
    for i in (0, 2, 3):
        alone = decode(model, candidates[i : i + 1], settings)[0].volume
        assert together[i].n_slices == 1 and torch.equal(together[i].volume, again[i].volume)
        assert torch.allclose(alone, together[i].volume, atol=1e-3) and not torch.equal(alone, candidates[i].stack.volume)


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "non-finite values"), (0.25, "a constant picture")])
def test_a_broken_picture_is_no_edit_and_spoils_no_other(model: Inpainter, monkeypatch: Any, value: float, reason: str) -> None:
    settings = settings_of()
    candidates = candidates_of(model, settings)
    original = Inpainter.decode

    def broken(self: Inpainter, latents: Tensor) -> Tensor:
        pictures = original(self, latents).clone()
        pictures[0] = value
        return pictures

    monkeypatch.setattr(Inpainter, "decode", broken)
    outcomes = decode(model, [candidates[0], candidates[3]], settings)
    assert outcomes[0].volume is None and reason in outcomes[0].reason
    assert outcomes[1].volume is not None and outcomes[1].reason == ""
