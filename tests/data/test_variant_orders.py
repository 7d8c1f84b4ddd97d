from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.transforms import RandomizableTransform

from monai_diffaug.data.variant_orders import PENDING, VariantOrders
from monai_diffaug.data.variant_store import VariantKey
from monai_diffaug.data.variants import VariantBank

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, threading, time
from pathlib import Path
import torch
from monai.transforms import RandomizableTransform
from monai_diffaug.data.variants import VariantBank

class Slow(RandomizableTransform):
    def __call__(self, data):
        if threading.current_thread() is not threading.main_thread():
            Path(sys.argv[1], "begun " + data["name"]).touch()
            time.sleep(0.5)
            Path(sys.argv[1], "done " + data["name"]).touch()
        return {**data, "image": data["image"] + 1}

bank = VariantBank(Slow(), seed=0, variants=2)
for name in "ab":
    bank.draw({"image": torch.zeros(1, 4, 4), "name": name}, 0)
while not Path(sys.argv[1], "begun a").exists():
    time.sleep(0.01)
"""


class Plus(RandomizableTransform):
    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, "image": data["image"] + 1}


def key(sample: str) -> VariantKey:
    return VariantKey(sample, 0, 0)


def wait_for(reached: Any) -> None:
    deadline = time.monotonic() + 10
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.005)


def test_close_waits_for_the_current_variant_and_drops_the_other_orders() -> None:
    begun, go_on, made = threading.Event(), threading.Event(), []

    def make(data: Mapping[Hashable, Any], order: VariantKey) -> None:
        begun.set()
        go_on.wait(10)
        made.append(order.sample)

    orders = VariantOrders(make)
    for name in "abc":
        orders.place({}, key(name))
    begun.wait(10)
    threading.Timer(0.05, go_on.set).start()
    orders.close()
    assert made == ["a"]
    orders.place({}, key("b"))  # a dropped variant can be ordered again
    wait_for(lambda: len(made) == 2)
    assert made == ["a", "b"]


def test_a_sample_is_pending_once_and_the_queue_has_a_limit() -> None:
    go_on, made = threading.Event(), []
    orders = VariantOrders(lambda data, order: (go_on.wait(10), made.append(order.sample)))  # type: ignore[arg-type]
    for name in ["twice", "twice", *map(str, range(2 * PENDING))]:
        orders.place({}, key(name))
    go_on.set()
    wait_for(lambda: len(made) == PENDING)
    time.sleep(0.05)
    assert len(made) == PENDING and made.count("twice") == 1


def test_an_order_has_the_items_of_the_sample_at_its_time() -> None:
    go_on, images = threading.Event(), []
    orders = VariantOrders(lambda data, order: (go_on.wait(10), images.append(data["image"])))  # type: ignore[arg-type]
    data: dict[Hashable, Any] = {"image": 1}
    orders.place(data, key("a"))
    data["image"] = 2
    go_on.set()
    wait_for(lambda: images)
    assert images == [1]


def test_an_unreferenced_bank_leaves_no_thread_and_no_variants_in_memory() -> None:
    def reference_of_a_used_bank() -> weakref.ref[VariantBank]:
        bank = VariantBank(Plus(), seed=0, variants=2)
        bank.draw({"image": torch.zeros(1, 4, 4)}, 0)
        wait_for(lambda: bank.made == 2)
        return weakref.ref(bank)

    reference = reference_of_a_used_bank()
    wait_for(lambda: gc.collect() < 0 or reference() is None)
    assert reference() is None and "variants" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.slow  # starts another process that imports torch
def test_at_interpreter_exit_the_current_variant_is_finished_and_no_other(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False, env=env)
    assert result.returncode == 0, result.stderr[-2000:]
    assert {file.name for file in tmp_path.iterdir()} == {"begun a", "done a"}
