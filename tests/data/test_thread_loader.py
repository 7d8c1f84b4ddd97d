from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.data import Dataset, ThreadDataLoader

from monai_diffaug.data.thread_loader import RaisingThreadDataLoader


class Broken(ValueError):
    pass


class ThirdFails(Dataset):
    """Four numbers, of which the third cannot be read."""

    def __init__(self) -> None:
        super().__init__(range(4))

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 2:
            raise Broken("item 2 is broken")
        return torch.tensor(index)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_monai_ends_the_epoch_early_and_says_nothing() -> None:
    """The reason for the subclass: if MONAI raises some day, it can go."""
    assert len(list(ThreadDataLoader(ThirdFails(), num_workers=0))) == 2


@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "use_thread_workers": True}, {"repeats": 2}, {"buffer_size": 3}])
def test_an_error_in_the_data_set_reaches_the_consumer_after_the_batches_before_it(options: dict[str, object]) -> None:
    got = []
    with pytest.raises(Broken, match="item 2 is broken"):
        for batch in RaisingThreadDataLoader(ThirdFails(), **options):
            got.append(int(batch))
    assert got == ([0, 0, 1, 1] if options.get("repeats") == 2 else [0, 1])


def test_without_an_error_it_is_monais_loader() -> None:
    loader = RaisingThreadDataLoader(Dataset(range(5), torch.tensor), batch_size=2, repeats=2)
    assert isinstance(loader, ThreadDataLoader)
    for _ in range(2):  # a second epoch works as the first
        assert [batch.tolist() for batch in loader] == [[0, 1], [0, 1], [2, 3], [2, 3], [4], [4]]


def test_leaving_the_loop_early_stops_the_thread() -> None:
    import threading

    before = threading.active_count()
    iterator = iter(RaisingThreadDataLoader(Dataset(range(100), torch.tensor)))
    next(iterator)
    iterator.close()
    assert threading.active_count() == before


PROGRAM = """
import sys, time
from pathlib import Path
import torch
from monai.data import Dataset
from monai_diffaug.data.thread_loader import RaisingThreadDataLoader

class SlowSecond(Dataset):
    def __getitem__(self, index):
        if index == 1:
            Path(sys.argv[1], "begun").touch()
            time.sleep(0.5)
            Path(sys.argv[1], "done").touch()
        return torch.zeros(1)

batches = iter(RaisingThreadDataLoader(SlowSecond(range(9)), buffer_size=1))
next(batches)
while not Path(sys.argv[1], "begun").exists():
    time.sleep(0.01)
"""


def test_a_program_that_ends_in_the_middle_of_an_epoch_lets_the_thread_finish_its_item(tmp_path: Path) -> None:
    """A thread that Python kills at its end takes the process with it when it is within torch: exit code 134."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False, env=env)
    assert result.returncode == 0, result.stderr[-2000:]
    assert {file.name for file in tmp_path.iterdir()} == {"begun", "done"}
