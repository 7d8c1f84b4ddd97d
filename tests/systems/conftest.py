"""What the sampler is given by ``repaint``, spied on."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from monai_diffaug.edit import denoise


class Spied:
    """A ``Denoiser`` that remembers what it was given and what it answered."""

    def __init__(self, denoise: Any) -> None:
        self.denoise = denoise
        self.shares_latents = getattr(denoise, "shares_latents", False)
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def __call__(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        answer: Tensor = self.denoise(latents, timestep, context)
        self.calls.append((latents.clone(), timestep, context.clone(), answer.clone()))
        return answer


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Spied, dict[str, Any]]]:
    """Each run of the sampler that ``edit.denoise`` starts: the spied denoiser and the named arguments."""
    calls: list[tuple[Spied, dict[str, Any]]] = []
    sample = denoise.inpaint_latents

    def spied(denoiser: Any, scheduler: Any, **named: Any) -> Tensor:
        calls.append((Spied(denoiser), named))
        return sample(calls[-1][0], scheduler, **named)

    monkeypatch.setattr(denoise, "inpaint_latents", spied)
    return calls
