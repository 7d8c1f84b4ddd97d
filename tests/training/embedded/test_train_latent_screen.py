"""The recipe of the latent screen: what is drawn, judged and learned, and that a stopped run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.latent_screen import ScreenConfig, ScreenNetwork, load_latent_screen, vae_fingerprint
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.embedded import train_latent_screen as recipe

LESION, NORMAL = "ultrasound of breast, benign mass", "breast ultrasound, normal tissue"


class Corner:
    """A validator that finds the upper left quarter, and counts its pictures."""

    size_px = 32

    def __init__(self) -> None:
        self.seen = 0

    def predict(self, images: Tensor, generators: Any) -> Tensor:
        self.seen += len(images)
        assert images.shape[-2:] == (32, 32) and float(images.abs().max()) <= 1 and len(generators) == len(images)
        found = torch.zeros(len(images), 1, 32, 32)
        found[..., :16, :16] = 1
        return found


def crops(n: int = 4) -> recipe.LatentCrops:
    generator = torch.Generator().manual_seed(0)
    latents, masked = torch.randn(2, n, 4, 16, 16, generator=generator).half()
    mask = torch.zeros(n, 1, 16, 16).half()
    mask[..., 4:10, 4:10] = 1
    return recipe.LatentCrops(latents, masked, mask, [LESION, NORMAL] * (n // 2))


def write_bank(folder: Path, name: str = "train-000.pt", n: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(crops(n)._asdict(), folder / name)
    return folder


@pytest.fixture
def painter(random_inpainter: str) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))


def test_only_training_chunks_of_a_bank_are_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"training\.latent_bank"):
        recipe.load_bank(tmp_path)
    write_bank(tmp_path, "validation-000.pt")
    with pytest.raises(FileNotFoundError):
        recipe.load_bank(tmp_path)
    write_bank(tmp_path)
    write_bank(tmp_path, "train-001.pt", n=2)
    bank = recipe.load_bank(tmp_path)
    assert len(bank.latents) == len(bank.captions) == 6 and bank.rows([5, 0]).captions == [NORMAL, LESION]


def test_normal_tissue_is_painted_over_with_a_finding_of_the_same_anatomy() -> None:
    others = [LESION, NORMAL, "CT of brain, ischaemic stroke", "colon endoscopy, polyp"]
    rng = np.random.RandomState(0)
    assert recipe.with_findings([NORMAL, "colon endoscopy, polyp"], others, rng) == [LESION, "colon endoscopy, polyp"]
    assert recipe.with_findings([NORMAL], ["colon endoscopy, polyp"], rng) == [NORMAL]
    assert recipe.shows_finding(LESION) and not recipe.shows_finding(NORMAL) and not recipe.shows_finding("x-ray of chest, pneumonia")


def test_real_masks_count_where_a_finding_is_named_and_nowhere_else() -> None:
    torch.manual_seed(0)
    bank = crops(8)
    latents, target = recipe.draw_real(bank, 32)
    for row, found in zip(latents, target, strict=True):
        index = next(i for i in range(8) if torch.equal(row, bank.latents[i].float()))
        assert bool(found.any()) is (index % 2 == 0)


def test_what_is_painted_changes_inside_the_mask_only_and_long_runs_have_a_halfway(painter: Inpainter) -> None:
    given = crops().rows(range(4))
    outside = (given.mask == 0).expand(-1, 4, -1, -1)
    for steps in (1, 4):
        latents, halfway = recipe.painted(painter, given, steps, 2.0, torch.Generator().manual_seed(1))
        assert torch.equal(latents[outside], given.latents[outside]) and not torch.equal(latents, given.latents)
        assert (halfway is None) is (steps == 1)
    assert halfway is not None and torch.equal(halfway[outside], given.latents[outside]) and not torch.equal(halfway, latents)


def test_the_target_is_the_validators_word_at_latent_size(painter: Inpainter) -> None:
    target = recipe.judge(painter, Corner(), torch.randn(2, 4, 16, 16), seed=0)
    wanted = torch.zeros(2, 1, 16, 16)
    wanted[..., :8, :8] = 1
    assert torch.equal(target, wanted)


def test_crops_are_judged_once_and_read_again(tmp_path: Path, painter: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "CHUNK_SIZE", 3)
    validator = Corner()
    first = recipe.JudgedBank(tmp_path, crops(), painter, validator, 5)
    judged = validator.seen
    again = recipe.JudgedBank(tmp_path, crops(), painter, validator, 5)
    assert judged == 5 and validator.seen == 5 and len(first.latents) >= 5
    assert torch.equal(first.latents, again.latents) and torch.equal(first.target, again.target)
    other = recipe.JudgedBank(tmp_path / "other", crops(), painter, validator, 5, seed=9)
    assert other.latents.shape != first.latents.shape or not torch.equal(other.latents, first.latents)


def test_the_loss_is_small_only_for_the_right_answer_and_a_few_steps_lower_it() -> None:
    target = torch.zeros(2, 1, 16, 16)
    target[..., 4:10, 4:10] = 1
    right, empty = (target * 2 - 1) * 8, torch.full_like(target, -8.0)
    assert float(recipe.screen_loss(right, target)) < 0.01 < 1 < float(recipe.screen_loss(empty, target))
    assert float(recipe.screen_loss(empty, target * 0)) < 0.01
    torch.manual_seed(0)
    network = ScreenNetwork(ScreenConfig(channels=8, blocks_down=(1, 1), blocks_up=(1,)))
    latents = torch.randn(2, 4, 16, 16) * 0.1 + F.interpolate(target, 16) * 2
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    losses = []
    for _ in range(15):
        loss = recipe.screen_loss(network(latents), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_writes_a_screen_of_the_inpainters_vae_and_goes_on_where_it_stopped(
    tmp_path: Path, painter: Inpainter, random_inpainter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, validator = write_bank(tmp_path / "bank"), Corner()
    options: dict[str, Any] = {"inpainter": random_inpainter, "validator": validator, "batch_size": 2, "crops": 4}
    recipe.train(bank, tmp_path / "run", 0.02, **options)
    folder = tmp_path / "run" / "latent_screen"
    before = load_latent_screen(ModelSpec("latent_screen", str(folder)))
    before.check_vae(painter.vae)
    assert before.fingerprint == vae_fingerprint(painter.vae)
    judged = validator.seen
    finished = recipe.train(bank, tmp_path / "run", 0.02, **options)  # at 100 %: nothing left to do
    latents = torch.randn(1, 4, 16, 16)
    assert validator.seen == judged
    assert torch.allclose(finished.eval()(latents).sigmoid(), before.predict(latents), atol=2e-3)
