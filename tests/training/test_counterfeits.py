from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.training import counterfeits
from monai_diffaug.training.counterfeits import CHANCES, FILLINGS, FOREIGN, cover, disguise, fill


@pytest.fixture
def speckle() -> torch.Tensor:
    """Tissue with texture, (3, 48, 48) in [0, 1]."""
    return (0.5 + 0.1 * torch.randn(1, 48, 48, generator=torch.Generator().manual_seed(0))).expand(3, -1, -1).clamp(0, 1)


@pytest.fixture
def outline() -> torch.Tensor:
    mask = torch.zeros(1, 48, 48)
    mask[:, 12:36, 12:36] = 1
    return mask


def deep(outline: torch.Tensor) -> torch.Tensor:
    """Pixels (48, 48) that no soft edge reaches from outside."""
    return -torch.nn.functional.max_pool2d(-outline, 19, 1, 9)[0] > 0


def test_every_kind_of_filling_has_a_chance():
    assert set(CHANCES) == {*FILLINGS, *FOREIGN} and sum(CHANCES.values()) == pytest.approx(1)


@pytest.mark.parametrize("kind", CHANCES)
def test_each_kind_replaces_the_middle_of_the_outline(kind, speckle, outline, monkeypatch):
    monkeypatch.setattr(counterfeits, "CHANCES", {kind: 1.0})
    monkeypatch.setattr(counterfeits, "ASTRAY_SHARE", 0.0)
    donor = 1 - speckle, outline
    for seed in range(4):
        filled = fill(np.random.RandomState(seed), speckle, outline, tissue=lambda: donor, lesion=lambda: donor)
        inside = filled[:, deep(outline)]
        assert filled.shape == speckle.shape and float(filled.min()) >= 0 and float(filled.max()) <= 1
        assert not torch.allclose(inside, speckle[:, deep(outline)], atol=1e-3)
        assert torch.equal(filled[:, 0, 0], speckle[:, 0, 0])
        if kind == "flat":
            assert float(inside.std(1).max()) < 0.3 * float(speckle[:, deep(outline)].std(1).min())
        if kind in FOREIGN:
            assert torch.allclose(inside, donor[0][:, deep(outline)], atol=1e-4)


def test_patches_astray_leave_the_outline(speckle, outline, monkeypatch):
    monkeypatch.setattr(counterfeits, "CHANCES", {"flat": 1.0})
    monkeypatch.setattr(counterfeits, "ASTRAY_SHARE", 1.0)
    rng = np.random.RandomState(0)
    filled = [fill(rng, speckle, outline, tissue=None, lesion=None) for _ in range(8)]
    assert any(not torch.equal(each[:, 0, 0], speckle[:, 0, 0]) or not torch.equal(each[:, -1, -1], speckle[:, -1, -1]) for each in filled)


def test_a_covered_lesion_cannot_be_seen(speckle, outline):
    lesion = torch.zeros_like(outline)
    lesion[:, 20:28, 20:28] = 1
    image = torch.where(lesion > 0, torch.tensor(0.95), speckle)
    rng = np.random.RandomState(0)
    for _ in range(6):
        hidden = cover(rng, image, lesion, tissue=lambda: (speckle, outline))
        middle = hidden[:, 22:26, 22:26]
        flat_or_tissue = float(middle.std(dim=(1, 2)).max()) < 0.02 or torch.allclose(middle, speckle[:, 22:26, 22:26], atol=0.1)
        assert flat_or_tissue and torch.equal(hidden[:, 0, 0], image[:, 0, 0])


def test_a_disguised_lesion_keeps_its_form(speckle, outline):
    image = torch.where(outline > 0, 0.4 * speckle, speckle)
    for seed in range(6):
        changed = disguise(np.random.RandomState(seed), image, outline)
        inside = deep(outline)
        pair = np.corrcoef(changed[0, inside].numpy(), image[0, inside].numpy())[0, 1]
        assert pair > 0.5 and torch.equal(changed[:, 0, 0], image[:, 0, 0]) and not torch.equal(changed, image)
