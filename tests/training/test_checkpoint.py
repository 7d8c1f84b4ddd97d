from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_diffaug.training.checkpoint import Budget, Ema, cosine_rate, load_state, save_state


def test_a_run_resumes_where_it_stopped(tmp_path) -> None:
    module = torch.nn.Linear(2, 2)
    save_state(tmp_path / "a.ckpt", {"m": module, "ema": Ema(module)}, 0.4)
    other = torch.nn.Linear(2, 2)
    assert load_state(tmp_path / "a.ckpt", {"m": other, "ema": Ema(other)}) == 0.4
    assert torch.equal(other.weight, module.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_no_file_is_a_fresh_start(tmp_path) -> None:
    assert load_state(tmp_path / "none.ckpt", {}) == 0.0


def test_the_average_follows_the_weights() -> None:
    module = torch.nn.Linear(1, 1)
    ema = Ema(module, 0.9)
    with torch.no_grad():
        module.weight.fill_(100.0)
    for _ in range(100):
        ema.update(module)
    assert ema.module.weight.item() == pytest.approx(100.0, abs=0.1)


def test_the_rate_warms_up_and_falls() -> None:
    rate = cosine_rate(1e-3, 1e-6)
    assert rate(0.0) < rate(0.01) < rate(0.02) == pytest.approx(1e-3, rel=0.01)
    assert rate(1.0) == pytest.approx(1e-6)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter: No space\nframe #0")])
def test_a_write_that_fails_leaves_the_older_state_and_no_part(tmp_path, monkeypatch, error) -> None:
    module = torch.nn.Linear(2, 2)
    save_state(tmp_path / "run.ckpt", {"module": module}, 0.5)
    before = (tmp_path / "run.ckpt").read_bytes()

    def full(state: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_state(tmp_path / "run.ckpt", {"module": module}, 0.6)
    assert (tmp_path / "run.ckpt").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]


def test_a_suspended_machine_counts_as_ten_seconds(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("monai_diffaug.training.checkpoint.time.monotonic", lambda: now[0])
    budget = Budget(minutes=1.0)
    budget.load_state_dict({"steps": 7, "seconds": 30.0})
    now[0] = 6.0
    assert budget.progress() == pytest.approx(0.6)
    now[0] += 3600
    assert budget.progress() == pytest.approx(0.6 + 10 / 60)
    assert budget.state_dict() == {"steps": 7, "seconds": pytest.approx(46.0)}


def test_steps_or_minutes_bound_a_run() -> None:
    budget = Budget(steps=4)
    budget.steps = 3
    assert budget.progress() == 0.75
    assert Budget(minutes=0.0).progress() == Budget(steps=0).progress() == 1.0
