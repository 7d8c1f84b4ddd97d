from __future__ import annotations

import os
import signal
import threading

import pytest

from monai_diffaug.files.stop_signal import SIGTERM_EXIT, sigterm_ends, without_interruption


def test_sigterm_runs_finally_blocks_and_the_former_handler_comes_back() -> None:
    cleaned = []
    with pytest.raises(SystemExit) as raised, sigterm_ends():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned.append(True)
    assert raised.value.code == SIGTERM_EXIT == 143 and cleaned and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_block_without_interruption_is_finished_first(number, error) -> None:
    steps = []
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with Ctrl-C ignored
    try:
        with pytest.raises(error), sigterm_ends():
            with without_interruption():
                os.kill(os.getpid(), number)
                steps.append("inside")
            steps.append("after")
        assert steps == ["inside"] and signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)


def test_threads_may_use_both(tmp_path) -> None:
    done = []

    def work() -> None:
        with sigterm_ends(), without_interruption():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
