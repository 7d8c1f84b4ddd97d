from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from monai_diffaug.errors import MissingExtraError
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError

ROOT = Path(__file__).resolve().parents[2]


class Toy:
    """Fits a line; records the calls of the loop and sends itself a signal at a step."""

    name, rate = "toy", 0.1

    def __init__(self, stop_at: int = -1, broken: bool = False, number: int = signal.SIGINT) -> None:
        self.line = nn.Linear(1, 1)
        self.line.bias.requires_grad_(False)
        nn.init.constant_(self.line.weight, 0.0)
        self.modules = {"line": self.line}
        self.seeds, self.drawn, self.written = [], [], []
        self.calls, self.stop_at, self.broken, self.number = 0, stop_at, broken, number
        self.progress = []

    def reseed(self, seed):
        self.seeds.append(seed)

    def loss(self, progress):
        self.progress.append(progress)
        self.calls += 1
        if self.calls == self.stop_at:
            os.kill(os.getpid(), self.number)
        return (self.line.weight - 2).square().sum() * (float("nan") if self.broken else 1.0)

    def draw(self, file):
        self.drawn.append((file.name, float(self.line.weight)))
        from PIL import Image

        Image.new("RGB", (4, 4)).save(file)

    def write(self, folder):
        self.written.append(float(self.line.weight))


def test_it_trains_writes_the_average_and_draws_as_it_goes(tmp_path):
    toy = Toy()
    bias = toy.line.bias.clone()
    assert fine_tune(toy, FineTuneSettings(minutes=None, steps=100, pictures=2), tmp_path) == 100
    assert toy.written[0] == pytest.approx(2, abs=0.3) and toy.written[0] != float(toy.line.weight.detach())
    assert torch.equal(toy.line.bias, bias)
    assert toy.progress == pytest.approx([k / 100 for k in range(100)])
    assert [name for name, _ in toy.drawn] == ["step_000000.png", "step_000051.png", "step_000100.png"]
    assert toy.drawn[0][1] == 0.0
    lines = [json.loads(line) for line in (tmp_path / "training/log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 100 and lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize(("number", "outcome"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_stopped_run_finishes_its_step_and_goes_on_with_new_random_numbers(tmp_path, number, outcome):
    settings = FineTuneSettings(minutes=None, steps=30, pictures=0)
    stopped, before = Toy(stop_at=11, number=number), (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    with pytest.raises(outcome) as caught:
        fine_tune(stopped, settings, tmp_path)
    assert number == signal.SIGINT or caught.value.code == 143
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    state = torch.load(tmp_path / "training/state.ckpt", weights_only=True)
    assert state["spent"]["steps"] == stopped.calls == 11 and not stopped.written
    assert float(state["trained"]["0"]) == float(stopped.line.weight.detach())
    rest = Toy()
    assert fine_tune(rest, settings, tmp_path) == 30
    assert rest.calls == 19 and rest.seeds == [11]


LONG_RUN = """
import sys, time
import torch
from torch import nn
from monai_diffaug.commands.cli import main
from monai_diffaug.commands import train
from monai_diffaug.training.recipe import Recipe

class Slow(Recipe):
    name, rate = "inpaint", 0.1

    def __init__(self, settings, slices, held_out=()):
        self.slices, self.line = list(slices), nn.Linear(1, 1)
        self.modules = {"line": self.line}

    def reseed(self, seed):
        pass

    def loss(self, progress):
        print("step", flush=True)
        time.sleep(0.05)
        return self.line.weight.square().sum()

    def draw(self, file):
        file.write_bytes(b"")

    def write(self, folder):
        (folder / "model").write_text("")

train.RECIPES = {"inpaint": ("__main__:Slow", "")}
sys.exit(main(["train", "inpaint", "--data", sys.argv[1], "--out", sys.argv[2], "--steps", "100000", "--pictures", "0"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_command_saves_the_last_step_prints_a_line_and_ends_with_its_code(tmp_path, datalist, number, code):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LONG_RUN, str(datalist), str(tmp_path / "out")]
    process = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(3):
        assert process.stdout.readline() == "step\n", process.stderr.read()
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    steps = 3 + printed.count("step")
    assert torch.load(tmp_path / "out/training/state.ckpt", weights_only=True)["spent"]["steps"] == steps
    assert f"stopped at step {steps}; the same command goes on from there" in errors and "Traceback" not in errors
    assert not (tmp_path / "out/model").exists()


def test_fast_parameters_learn_three_times_as_fast(tmp_path):
    toy = Toy()
    other = nn.Parameter(torch.zeros(1))
    toy.modules = {**toy.modules, "fresh": nn.ParameterList([other])}
    toy.fast = [other]
    plain = toy.loss
    toy.loss = lambda progress: plain(progress) + (other - 2).square().sum()
    fine_tune(toy, FineTuneSettings(minutes=None, steps=5, pictures=0, rate=1e-3), tmp_path)
    assert float(other.detach()) == pytest.approx(3 * float(toy.line.weight.detach()), rel=0.01)


def test_a_half_written_model_is_never_at_its_place(tmp_path):
    class Fails(Toy):
        def write(self, folder):
            (folder / "weights").write_text("half")
            raise OSError("disk full")

    settings = FineTuneSettings(minutes=None, steps=2, pictures=0)
    with pytest.raises(OSError, match="disk full"):
        fine_tune(Fails(), settings, tmp_path)
    assert not (tmp_path / "weights").exists()

    class Writes(Toy):
        def write(self, folder):
            assert not any(folder.iterdir())
            (folder / "weights").write_text("whole")

    fine_tune(Writes(), settings, tmp_path)
    assert (tmp_path / "weights").read_text() == "whole" and not list((tmp_path / "training").glob("*.part"))


def test_minutes_bound_a_run(tmp_path):
    toy = Toy()
    steps = fine_tune(toy, FineTuneSettings(minutes=0.01, pictures=0), tmp_path)
    assert steps > 3 and toy.written
    assert fine_tune(Toy(), FineTuneSettings(minutes=0.01, pictures=0), tmp_path) == steps
    assert fine_tune(Toy(), FineTuneSettings(minutes=0.02, pictures=0), tmp_path) > steps


def test_another_run_in_the_folder_is_refused_unless_only_its_length_differs(tmp_path):
    fine_tune(Toy(), FineTuneSettings(minutes=None, steps=2, pictures=0), tmp_path)
    with pytest.raises(TrainingInputError, match=r"seed 0 \(now 1\).*--restart"):
        fine_tune(Toy(), FineTuneSettings(minutes=None, steps=2, seed=1), tmp_path)
    longer = Toy()
    assert fine_tune(longer, FineTuneSettings(minutes=None, steps=5, pictures=0), tmp_path) == 5
    assert longer.calls == 3


def test_a_run_of_an_older_version_without_a_setting_goes_on(tmp_path):
    fine_tune(Toy(), FineTuneSettings(minutes=None, steps=2, pictures=0), tmp_path)
    file = tmp_path / "training/settings.json"
    settings = json.loads(file.read_text())
    del settings["encoder"]
    file.write_text(json.dumps(settings))
    assert fine_tune(Toy(), FineTuneSettings(minutes=None, steps=3, pictures=0), tmp_path) == 3


def test_a_diverging_run_ends_with_advice(tmp_path):
    with pytest.raises(TrainingInputError, match="lower --rate"):
        fine_tune(Toy(broken=True), FineTuneSettings(minutes=None, steps=5, pictures=0), tmp_path)


def test_the_advice_to_a_diverging_run_can_be_followed(tmp_path):
    with pytest.raises(TrainingInputError, match="lower --rate"):
        fine_tune(Toy(broken=True), FineTuneSettings(minutes=None, steps=5, pictures=0), tmp_path)
    assert fine_tune(Toy(), FineTuneSettings(minutes=None, steps=5, pictures=0, rate=0.01), tmp_path) == 5
    with pytest.raises(TrainingInputError, match=r"rate 0\.01 \(now 0\.02\)"):
        fine_tune(Toy(), FineTuneSettings(minutes=None, steps=6, pictures=0, rate=0.02), tmp_path)


def test_tensorboard_events_are_written_or_the_extra_is_named(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    fine_tune(Toy(), FineTuneSettings(minutes=None, steps=30, pictures=1, tensorboard=True), tmp_path / "a")
    assert list((tmp_path / "a/training/tensorboard").glob("events*"))
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"monai_diffaug\[train\]"):
        fine_tune(Toy(), FineTuneSettings(minutes=None, steps=2, tensorboard=True), tmp_path / "b")


def test_settings_need_one_measure_of_length():
    with pytest.raises(ValueError, match="minutes or steps"):
        FineTuneSettings(minutes=1, steps=1)


def test_a_word_is_no_switch():
    with pytest.raises(ValueError, match="lora must be True or False, got 'true'"):
        FineTuneSettings(lora="true")


@pytest.mark.parametrize(("text", "message"), [("{", "is no JSON"), ("[]", "holds no settings of a run")])
def test_settings_that_cannot_be_read_are_named(tmp_path, text, message):
    (tmp_path / "training").mkdir()
    (tmp_path / "training/settings.json").write_text(text)
    with pytest.raises(TrainingInputError, match=f"settings.json {message}"):
        fine_tune(Toy(), FineTuneSettings(minutes=None, steps=1), tmp_path)


def test_a_state_that_is_cut_or_of_another_shape_is_named(tmp_path):
    fine_tune(Toy(), FineTuneSettings(minutes=None, steps=2), tmp_path)
    state = tmp_path / "training/state.ckpt"
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingInputError, match="state.ckpt does not fit this run .*--restart"):
        fine_tune(Toy(), FineTuneSettings(minutes=None, steps=3), tmp_path)
    state.write_bytes(whole)
    wider = Toy()
    wider.modules = {**wider.modules, "second": nn.Linear(1, 1)}
    with pytest.raises(TrainingInputError, match="does not fit this run"):
        fine_tune(wider, FineTuneSettings(minutes=None, steps=3), tmp_path)
