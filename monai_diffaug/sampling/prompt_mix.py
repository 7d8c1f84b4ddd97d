"""Several prompts as one: their text states averaged with weights (EMIT-Diff's prompt mixing)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["mix_prompts", "prompt_mix_text", "prompt_pairs"]


def prompt_pairs(prompt: str | Sequence[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    """The prompt of a sample as (weight, text) pairs; a single text has the weight 1.

    Raises:
        ValueError: neither a text nor (weight, text) pairs, or weights that cannot be scaled to the sum 1.

    >>> prompt_pairs("benign mass")
    ((1.0, 'benign mass'),)
    """
    if isinstance(prompt, str):
        return ((1.0, prompt),)
    try:
        pairs = tuple((float(weight), text) for weight, text in prompt)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a prompt must be one text per sample, or (weight, text) pairs, got {prompt!r}") from error
    if not all(isinstance(text, str) for _, text in pairs):
        raise ValueError(f"a prompt must be one text per sample, or (weight, text) pairs, got {prompt!r}")
    _check_weights(pairs)
    return pairs


def mix_prompts(encode_text: Callable[[list[str]], Tensor], prompt_mix: Sequence[tuple[float, str]]) -> Tensor:
    """Weighted mean of the text states of some prompts.

    Args:
        encode_text: texts -> (N, L, D), e.g. ``Inpainter.encode_text``.
        prompt_mix: (weight, text) pairs; weights >= 0 are scaled to the sum 1.

    Returns:
        (1, L, D) text states.

    Raises:
        ValueError: no pair, a negative or non-finite weight, or all weights 0.

    >>> def encode_text(texts):
    ...     return torch.tensor([[[float(len(text))]] for text in texts])
    >>> mix_prompts(encode_text, [(3, "abcd"), (1, "abcdefgh")]).item()
    5.0
    """
    weights = _check_weights(prompt_mix)
    states = encode_text([text for _, text in prompt_mix])
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    return torch.einsum("n,nld->ld", shares.to(states), states)[None]


def prompt_mix_text(prompt_mix: Sequence[tuple[float, str]]) -> str:
    """A mix as one line of text, for records.

    >>> prompt_mix_text([(0.7, "benign mass"), (0.3, "malignant mass")])
    '0.7 * benign mass + 0.3 * malignant mass'
    """
    return " + ".join(f"{weight:g} * {text}" for weight, text in prompt_mix)


def _check_weights(prompt_mix: Sequence[tuple[float, str]]) -> list[float]:
    weights = [float(weight) for weight, _ in prompt_mix]
    if not weights or not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
        raise ValueError(f"prompt_mix needs (weight, text) pairs with weights >= 0 and a sum above 0, got {list(prompt_mix)}")
    return weights
