"""Two processes over Gloo, as torchrun starts them, against one process that sees the data of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.processes import average_gradients, local_device
from monai_diffaug.training.run_settings import FineTuneSettings

ROOT = Path(__file__).resolve().parents[2]
TARGETS = (1.0, 3.0)
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.processes import joined
from monai_diffaug.training.processes import process_rank
from monai_diffaug.training.run_settings import FineTuneSettings

class Toy:
    name, rate = "toy", 0.1

    def __init__(self, rank):
        self.rank, self.seeds, self.progress, self.calls = rank, [], [], []
        self.network = nn.ParameterDict({"shared": nn.Parameter(torch.full((1,), float(rank))), "first_only": nn.Parameter(torch.zeros(1))})
        self.modules = {"network": self.network}

    def reseed(self, seed):
        self.seeds.append(seed)

    def loss(self, progress):
        self.progress.append(progress)
        loss = (self.network["shared"] - (1.0, 3.0)[self.rank]).square().sum()
        return loss + (self.network["first_only"] - 1).square().sum() if self.rank == 0 else loss

    def draw(self, file):
        self.calls.append("draw")

    def write(self, folder):
        self.calls.append("write")

out = Path(sys.argv[1])
with joined("cpu"):
    rank = process_rank()
    for steps in (20, 30):
        toy = Toy(rank)
        fine_tune(toy, FineTuneSettings(minutes=None, steps=steps, pictures=0), out)
    short = Toy(rank)
    fine_tune(short, FineTuneSettings(minutes=0.01, pictures=0), out / "short")
    results = {"weights": [float(toy.network[name].detach()) for name in ("shared", "first_only")]}
    results |= {"calls": toy.calls, "seeds": toy.seeds, "clock": short.progress}
    (out / f"rank{rank}.json").write_text(json.dumps(results))
"""

FAILING = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.processes import joined
from monai_diffaug.training.processes import process_rank
from monai_diffaug.training.run_settings import FineTuneSettings

class Fails:
    name, rate = "fails", 0.1

    def __init__(self, rank, at):
        self.rank, self.at, self.steps = rank, at, 0
        self.network = nn.Linear(1, 1)
        self.modules = {"network": self.network}

    def fail(self, what, rank):
        if self.at == what and self.rank == rank:
            raise ValueError(f"{what} of process {rank}")

    def reseed(self, seed):
        self.fail("reseed", 1)

    def loss(self, progress):
        self.steps += 1
        if self.steps == 3:
            self.fail("loss", 1)
        return self.network.weight.square().sum()

    def draw(self, file):
        self.fail("draw", 0)

    def write(self, folder):
        self.fail("write", 0)

out, results = Path(sys.argv[1]), {}
with joined("cpu"):
    rank = process_rank()
    for at in ("reseed", "loss", "draw", "write", "settings", "disk"):
        # the last run left these: another seed in the folder, and a state in the folder of the first process only
        folder = out / ("write" if at == "settings" else "reseed" if at == "disk" and rank == 1 else "write" if at == "disk" else at)
        try:
            fine_tune(Fails(rank, at), FineTuneSettings(minutes=None, steps=4, pictures=0, seed=int(at == "settings")), folder)
        except Exception as error:
            results[at] = f"{type(error).__name__}: {error}"
    (out / f"failed{rank}.json").write_text(json.dumps(results))
"""


def run_two(script: str, folder: Path) -> None:
    """Run a script in two processes, with the folder as its argument."""
    script_file = folder / ".train.py"  # hidden, because a run refuses a folder with files of others
    script_file.write_text(script)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script_file)]
    result = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False, env=env, timeout=120)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of each process, and the folder."""
    folder = tmp_path_factory.mktemp("two")
    run_two(SCRIPT, folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)], folder


class Both:
    """One process with the mean of both losses."""

    name, rate = "toy", 0.1

    def __init__(self) -> None:
        self.shared, self.other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.modules = {"network": nn.ParameterList([self.shared, self.other])}

    def reseed(self, seed):
        pass

    def loss(self, progress):
        each = [(self.shared - target).square().sum() for target in TARGETS]
        return (each[0] + each[1] + (self.other - 1).square().sum()) / 2

    def draw(self, file):
        pass

    def write(self, folder):
        pass


@pytest.mark.slow
def test_both_processes_end_with_the_weights_of_one_that_sees_all_data(results, tmp_path):
    (first, second), _ = results
    assert first["weights"] == second["weights"]
    toy = Both()
    for steps in (20, 30):
        fine_tune(toy, FineTuneSettings(minutes=None, steps=steps, pictures=0), tmp_path)
    assert first["weights"] == pytest.approx([float(toy.shared.detach()), float(toy.other.detach())], abs=1e-6)


@pytest.mark.slow
def test_one_process_writes_and_draws(results):
    (first, second), folder = results
    assert first["calls"] == ["draw", "write"] and second["calls"] == []
    lines = [json.loads(line) for line in (folder / "training/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 25]
    settings = json.loads((folder / "training/settings.json").read_text())
    assert settings["steps"] == 30


@pytest.mark.slow
def test_each_process_draws_other_crops_and_new_ones_when_the_run_is_resumed(results):
    (first, second), _ = results
    assert first["seeds"] == [20] and second["seeds"] == [20 + 1_000_003]


@pytest.mark.slow
def test_the_progress_is_that_of_the_first_process(results):
    (first, second), _ = results
    assert first["clock"] == second["clock"] and len(first["clock"]) > 1


def test_alone_nothing_is_averaged_and_the_device_stays(monkeypatch):
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    average_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda") == "cuda:3" and local_device("cuda:1") == "cuda:1" and local_device("cpu") == "cpu"
    monkeypatch.delenv("LOCAL_RANK")
    assert local_device("cuda") == "cuda"


@pytest.mark.slow
def test_what_fails_in_one_process_fails_in_both_and_the_one_says_why(tmp_path):
    run_two(FAILING, tmp_path)
    first, second = (json.loads((tmp_path / f"failed{rank}.json").read_text()) for rank in (0, 1))
    elsewhere = "TrainingInputError: another process of this run failed; its own message says why"
    assert first.pop("disk") == second.pop("disk").replace(str(tmp_path / "reseed"), str(tmp_path / "write"))
    refused = first.pop("settings")
    assert "holds a run with other settings: seed 0 (now 1)" in refused and second.pop("settings") == elsewhere
    assert first == {
        "reseed": elsewhere,
        "loss": elsewhere,
        "draw": "ValueError: draw of process 0",
        "write": "ValueError: write of process 0",
    }
    assert second == {
        "reseed": "ValueError: reseed of process 1",
        "loss": "ValueError: loss of process 1",
        "draw": elsewhere,
        "write": elsewhere,
    }


STOPPED = """
import json, os, signal, sys
from pathlib import Path
import torch
from torch import nn
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.processes import joined, process_rank
from monai_diffaug.training.run_settings import FineTuneSettings

class Stops:
    name, rate = "stops", 0.1

    def __init__(self, rank):
        self.rank, self.steps = rank, 0
        self.network = nn.Linear(1, 1)
        self.modules = {"network": self.network}

    def reseed(self, seed):
        pass

    def loss(self, progress):
        self.steps += 1
        if self.steps == 3 and self.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.network.weight.square().sum()

    def draw(self, file):
        pass

    def write(self, folder):
        pass

out = Path(sys.argv[1])
with joined("cpu"):
    rank = process_rank()
    trainee = Stops(rank)
    try:
        fine_tune(trainee, FineTuneSettings(minutes=None, steps=1000, pictures=0), out)
    except SystemExit as stopped:
        (out / f"stopped{rank}.json").write_text(json.dumps({"code": stopped.code, "steps": trainee.steps}))
"""


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    run_two(STOPPED, tmp_path)
    first, second = (json.loads((tmp_path / f"stopped{rank}.json").read_text()) for rank in (0, 1))
    assert first == second == {"code": 143, "steps": 3}
    assert torch.load(tmp_path / "training/state.ckpt", weights_only=True)["spent"]["steps"] == 3
