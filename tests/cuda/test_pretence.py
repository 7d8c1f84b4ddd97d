"""The pretence itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.pretend_cuda import Gpu, pretended_gpus

MIXED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sum of two": lambda here, there: here + there,
    "sum with a scalar of the cpu": lambda here, there: here + torch.tensor(2.0),
    "sum of the cpu with a scalar of the gpu": lambda here, there: there + torch.ones((), device="cuda"),
    "cat": lambda here, there: torch.cat([here, there]),
    "matrix product": lambda here, there: here @ there.T,
    "where": lambda here, there: torch.where(here > 0, here, there),
    "where with a mask of the cpu": lambda here, there: torch.where(there > 0, here, here),
    "index of the cpu": lambda here, there: here[torch.tensor([1, 0])],
    "index_select": lambda here, there: here.index_select(0, torch.tensor([1])),
    "copy into": lambda here, there: here.copy_(there),
    "assignment of a row": lambda here, there: here.__setitem__(0, there[0]),
    "masked_fill": lambda here, there: here.masked_fill(there > 0, 1.0),
    "lerp": lambda here, there: torch.lerp(here, there, 0.5),
    "linear": lambda here, there: torch.nn.functional.linear(here, there),
    "layer_norm": lambda here, there: torch.nn.functional.layer_norm(here, (3,), there[0]),
    "to": lambda here, there: here + there.to(here.device),
}


def refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except (RuntimeError, TypeError):
        return True
    return False


@pytest.mark.parametrize("name", MIXED)
def test_the_pretence_refuses_what_torchs_fake_tensors_refuse(name: str) -> None:
    with FakeTensorMode():
        fake = torch.ones(2, 3, device="cuda"), torch.ones(2, 3)
        expected = refused(lambda: MIXED[name](*fake))
    with pretended_gpus():
        tensors = torch.ones(2, 3, device="cuda"), torch.ones(2, 3)
        assert refused(lambda: MIXED[name](*tensors)) == expected


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.ones(2, device="cuda").numpy(),
        lambda: np.asarray(torch.ones(2, device="cuda")),
        lambda: np.asarray(MetaTensor(torch.ones(1, 2, 2)).to("cuda")),
        lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
        lambda: torch.empty(2, device="cuda").normal_(generator=torch.Generator()),
        lambda: torch.ones(1, 2, 2, dtype=torch.long, device="cuda").bmm(torch.ones(1, 2, 2, dtype=torch.long, device="cuda")),
        lambda: torch.ones(3)[torch.zeros(2, dtype=torch.long, device="cuda")],
        lambda: torch.ones(2, device="cuda:0") + torch.ones(2, device="cuda:1"),
        lambda: torch.nn.Linear(2, 2).to("cuda")(torch.ones(1, 2)),
    ],
)
def test_the_pretence_refuses_what_a_gpu_refuses(gpu: Gpu, call: Callable[[], Any]) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        call()
