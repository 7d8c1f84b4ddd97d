from __future__ import annotations

import pytest
import torch

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.sampling.prompt_mix import mix_prompts, prompt_pairs


def states(texts: list[str]) -> torch.Tensor:
    return torch.stack([torch.full((4, 2), float(len(text))) for text in texts])


def test_states_are_averaged_with_weights_scaled_to_one() -> None:
    assert torch.equal(mix_prompts(states, [(3, "a" * 4), (1, "b" * 8)]), torch.full((1, 4, 2), 5.0))


def test_the_mix_of_one_prompt_is_its_states(random_inpainter: str) -> None:
    encode = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu")).encode_text
    alone = mix_prompts(encode, [(0.3, "benign mass")])
    assert torch.allclose(alone, encode(["benign mass"]))
    mixed = mix_prompts(encode, [(0.5, "benign mass"), (0.5, "malignant mass")])
    assert not torch.allclose(mixed, alone) and torch.allclose(mixed, encode(["benign mass", "malignant mass"]).mean(0, keepdim=True))


@pytest.mark.parametrize("mix", [[], [(-1.0, "a"), (2.0, "b")], [(0.0, "a")], [(float("nan"), "a")]])
def test_weights_that_cannot_be_scaled_are_refused(mix: list[tuple[float, str]]) -> None:
    with pytest.raises(ValueError, match="prompt_mix"):
        mix_prompts(states, mix)


def test_a_text_and_pairs_of_any_type_become_pairs() -> None:
    assert prompt_pairs("benign mass") == ((1.0, "benign mass"),)
    assert prompt_pairs([[1, "a"], (torch.tensor(0.5), "b")]) == ((1.0, "a"), (0.5, "b"))


@pytest.mark.parametrize("prompt", [None, 3, ["benign mass"], ["ct"], [("benign mass", 0.5)], [(0.5, 3)]])
def test_other_values_than_a_text_or_pairs_are_refused(prompt: object) -> None:
    with pytest.raises(ValueError, match=r"one text per sample, or \(weight, text\) pairs, got"):
        prompt_pairs(prompt)  # type: ignore[arg-type]


def test_pairs_with_a_negative_weight_are_refused() -> None:
    with pytest.raises(ValueError, match="prompt_mix"):
        prompt_pairs([(-1.0, "a")])
