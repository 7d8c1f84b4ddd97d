"""Peak memory of a call."""

from __future__ import annotations

import torch

from monai_diffaug.studies.speed.peak_memory import peak_bytes

CPU, MEGABYTES = torch.device("cpu"), 10**6


def test_what_is_released_before_the_next_allocation_is_not_added() -> None:
    def one_after_the_other() -> None:
        for _ in range(5):
            torch.ones(MEGABYTES)

    def all_at_once() -> None:
        held = [torch.ones(MEGABYTES) for _ in range(5)]
        del held

    assert 4 * MEGABYTES <= peak_bytes(one_after_the_other, CPU) < 9 * MEGABYTES
    assert 20 * MEGABYTES <= peak_bytes(all_at_once, CPU) < 22 * MEGABYTES
