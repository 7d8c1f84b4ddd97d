from __future__ import annotations

import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_diffaug import LatentValidated, LesionBank, LesionNovelty, transform_hashing
from monai_diffaug.models import registry

MASK = torch.zeros(1, 64, 64, dtype=torch.uint8)
MASK[:, 20:44, 18:46] = 1


def texture(seed: int) -> torch.Tensor:
    coarse = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic")[0] * 255


BANK = LesionBank.of([{"image": texture(i), "label": MASK} for i in range(24)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return BANK.save(tmp_path / "bank.npz")


def test_a_copy_is_refused_with_the_lesion_it_repeats_and_a_fresh_one_is_not():
    guard = LesionNovelty(BANK)
    copied, fresh = guard(texture(7) * 0.5 + 10, MASK), [guard(texture(seed), MASK) for seed in range(100, 120)]
    assert not copied.novel and copied.image == 7 and copied.similarity > 0.99
    assert copied.reason == f"copy of training lesion 7: correlation {copied.similarity:.2f} >= {copied.limit:.2f}"
    assert np.mean([each.novel for each in fresh]) > 0.7
    assert all(each.novel == (each.reason == "") == (each.similarity < each.limit) for each in fresh)


def test_the_limit_is_the_quantile_from_above_of_the_likeness_among_real_lesions():
    assert LesionNovelty(BANK, 0.1).limit == pytest.approx(np.quantile(BANK.yardstick, 0.9))
    shares = [np.mean(BANK.yardstick >= LesionNovelty(BANK, quantile).limit) for quantile in (0.05, 0.25, 0.5)]
    assert shares == pytest.approx([0.05, 0.25, 0.5], abs=1 / 24 + 1e-6)
    assert LesionNovelty(BANK, limit=0.4).limit == 0.4


def test_the_limit_itself_is_refused():
    similarity = LesionNovelty(BANK)(texture(99), MASK).similarity
    assert not LesionNovelty(BANK, limit=similarity)(texture(99), MASK).novel
    assert LesionNovelty(BANK, limit=float(np.nextafter(similarity, 1)))(texture(99), MASK).novel


def test_a_mask_too_small_to_judge_is_no_copy():
    guard = LesionNovelty(BANK)
    assert guard(texture(7), MASK * 0) == (True, -1.0, -1, guard.limit, "")


def test_with_a_file_the_instance_is_small_and_the_file_is_read_once(file, monkeypatch):
    registry.clear()
    loads = []
    load = LesionBank.load
    monkeypatch.setattr(LesionBank, "load", classmethod(lambda cls, path: (loads.append(path), load(path))[1]))
    guard = LesionNovelty(file)
    assert len(pickle.dumps(guard)) < 1000 and not loads
    copies = [guard, deepcopy(guard), pickle.loads(pickle.dumps(guard))]
    with ThreadPoolExecutor(3) as pool:
        verdicts = list(pool.map(lambda each: each(texture(7), MASK), copies * 4))
    assert len(loads) == 1 and set(verdicts) == {LesionNovelty(BANK)(texture(7), MASK)}


def test_the_hash_tells_banks_files_and_limits_apart_and_stays_after_use(file, tmp_path):
    other = LesionBank.of([{"image": texture(i), "label": MASK} for i in range(30, 54)])
    guards = [LesionNovelty(BANK), LesionNovelty(other), LesionNovelty(BANK, 0.1), LesionNovelty(file)]
    hashes = [transform_hashing([guard]) for guard in guards]
    assert len(set(hashes)) == 4
    guards[0](texture(7), MASK), guards[3](texture(7), MASK)
    assert [transform_hashing([guard]) for guard in guards] == hashes
    assert transform_hashing([LatentValidated("image", novelty=BANK)]) != transform_hashing([LatentValidated("image")])
    LesionBank.of([{"image": texture(i), "label": MASK} for i in range(3)]).save(file)
    assert transform_hashing([LesionNovelty(file)]) != hashes[3]


def test_options_out_of_range_and_missing_files_are_refused(tmp_path):
    for options in ({"quantile": 0}, {"quantile": 1}, {"limit": 0}, {"limit": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            LesionNovelty(BANK, **options)
    with pytest.raises(FileNotFoundError, match=r"bank\.npz"):
        LesionNovelty(tmp_path / "bank.npz")


def test_a_bank_too_small_for_its_quantile_warns(caplog):
    with caplog.at_level(logging.WARNING):
        LesionNovelty(BANK)
        assert not caplog.records[1:]
        LesionNovelty(BANK, 0.01)
    assert "24 lesions" in caplog.text
