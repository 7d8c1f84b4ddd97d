"""The lock: whole runs exclude all, shards exclude their own number, and a refused run learns who holds the folder."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from monai_diffaug.generate.run_lock import RunLockedError, lock_run
from tests.generate.tiny_runs import until

HOLDER = """
import sys, time
from pathlib import Path
from monai_diffaug.generate.run_lock import lock_run
with lock_run(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_with_host_and_pid(tmp_path: Path) -> None:
    with (
        lock_run(tmp_path),
        pytest.raises(RunLockedError, match=f"in use by pid {os.getpid()} on {socket.gethostname()}; wait"),
        lock_run(tmp_path),
    ):
        pass
    with lock_run(tmp_path):
        pass


def test_shards_exclude_themselves_and_whole_runs_but_not_each_other(tmp_path: Path) -> None:
    with lock_run(tmp_path, (0, 2)), lock_run(tmp_path, (1, 2)):
        for shard in ((0, 2), None):
            with pytest.raises(RunLockedError, match=f"pid {os.getpid()} on"), lock_run(tmp_path, shard):
                pass
    with lock_run(tmp_path), pytest.raises(RunLockedError), lock_run(tmp_path, (0, 2)):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        with pytest.raises(RunLockedError, match=f"pid {holder.pid} on"), lock_run(tmp_path):
            pass
        holder.kill()

    def is_free() -> bool:
        try:
            with lock_run(tmp_path):
                return True
        except RunLockedError:
            return False

    until(is_free, seconds=10)
