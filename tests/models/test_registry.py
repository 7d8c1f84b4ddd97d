from __future__ import annotations

import os
import pickle
import threading
import time

import pytest
import torch

from monai_diffaug.errors import ModelSourceError, WorkerDeviceError
from monai_diffaug.models import registry
from monai_diffaug.models.registry import ModelSpec, live_object, load_count, shared_model, spec_of


def test_eight_threads_load_a_model_once() -> None:
    loads = []

    def load(spec: ModelSpec, device: torch.device) -> object:
        time.sleep(0.05)
        loads.append(spec)
        return object()

    spec = ModelSpec("inpainter", "threads")
    models: list[object] = []
    threads = [threading.Thread(target=lambda: models.append(shared_model(spec, "cpu", load))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1 and len(set(map(id, models))) == 1 and load_count(spec) == 1


def test_a_fork_while_the_lock_is_held_does_not_deadlock() -> None:
    spec = ModelSpec("inpainter", "fork")
    inside, leave = threading.Event(), threading.Event()

    def slow(spec: ModelSpec, device: torch.device) -> str:
        inside.set()
        leave.wait(20)
        return "parent"

    holder = threading.Thread(target=lambda: shared_model(spec, "cpu", slow))
    holder.start()
    assert inside.wait(5)
    child = os.fork()
    if child == 0:
        os._exit(0 if shared_model(spec, "cpu", lambda s, d: "child") == "child" else 1)
    deadline = time.monotonic() + 10
    status = None
    while status is None and time.monotonic() < deadline:
        pid, code = os.waitpid(child, os.WNOHANG)
        status = code if pid else None
        time.sleep(0.02)
    leave.set()
    holder.join()
    if status is None:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert status == 0


def test_the_error_of_cuda_in_a_forked_worker_names_the_alternatives(monkeypatch) -> None:
    monkeypatch.setattr(registry, "_forked", True)
    with pytest.raises(WorkerDeviceError, match="num_workers=0.*spawn.*CachedRandomd"):
        shared_model(ModelSpec("inpainter"), "cuda", lambda s, d: None)


def test_a_live_object_is_pickled_as_a_handle() -> None:
    network = torch.nn.Linear(1000, 1000)
    spec = spec_of("validator", network)
    assert live_object(spec) is network
    assert len(pickle.dumps(spec)) < 1000


def test_the_error_of_a_handle_of_another_process_says_what_to_pass() -> None:
    with pytest.raises(ModelSourceError, match="pass a folder, a file or a hub id"):
        live_object(ModelSpec("validator", "object:Linear-1-abc"))


def test_a_dtype_that_is_not_floating_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'int8'"):
        _ = ModelSpec("inpainter", "tiny", "int8").torch_dtype
