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
def test_monais_loader_ends_the_epoch_early_without_an_error() -> None:
    """The reason for the subclass: it is not needed any more once MONAI raises the error."""
    assert len(list(ThreadDataLoader(ThirdFails(), num_workers=0))) == 2


@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "use_thread_workers": True}, {"repeats": 2}, {"buffer_size": 3}])
def test_an_error_of_the_data_set_is_raised_after_the_batches_before_it(options: dict[str, object]) -> None:
    batches = []
    with pytest.raises(Broken, match="item 2 is broken"):
        for batch in RaisingThreadDataLoader(ThirdFails(), **options):
            batches.append(int(batch))
    assert batches == ([0, 0, 1, 1] if options.get("repeats") == 2 else [0, 1])


def test_without_an_error_the_batches_are_those_of_monais_loader() -> None:
    loader = RaisingThreadDataLoader(Dataset(range(5), torch.tensor), batch_size=2, repeats=2)
    assert isinstance(loader, ThreadDataLoader)
    for _ in range(2):  # a second epoch works as the first
        assert [batch.tolist() for batch in loader] == [[0, 1], [0, 1], [2, 3], [2, 3], [4], [4]]


def test_closing_the_iterator_stops_the_thread() -> None:
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


@pytest.mark.slow  # starts another process that imports torch
def test_at_interpreter_exit_the_thread_finishes_its_item(tmp_path: Path) -> None:
    """Python kills daemon threads at exit; inside torch this aborts the process with exit code 134."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False, env=env)
    assert result.returncode == 0, result.stderr[-2000:]
    assert {file.name for file in tmp_path.iterdir()} == {"begun", "done"}
