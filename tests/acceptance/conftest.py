"""Small samples, a small model, and counters of its calls that work across threads and forked workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug.models.medsam import MedSAM
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd

STEPS = 2
PROMPT = "ultrasound of breast, benign mass"


class Calls:
    """Number of calls of a function, in this process and the ones forked from it, since the last ``since()``."""

    def __init__(self) -> None:
        self._count = multiprocessing.get_context("fork").Value("i", 0)
        self._told = 0

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            with self._count.get_lock():
                self._count.value += 1
            return function(*args, **options)

        return counted

    @property
    def total(self) -> int:
        return int(self._count.value)

    def since(self) -> int:
        """Calls since the last call of this method."""
        new = self.total - self._told
        self._told = self.total
        return new


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Loader workers compute with one thread; so does the process they are compared with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def unet_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    from diffusers import UNet2DConditionModel

    calls = Calls()
    monkeypatch.setattr(UNet2DConditionModel, "forward", calls.counting(UNet2DConditionModel.forward))
    return calls


@pytest.fixture
def sam_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(MedSAM, "encode", calls.counting(MedSAM.encode))
    return calls


@pytest.fixture
def inpaint(random_inpainter: str) -> Callable[..., DiffusionLocalInpaintd]:
    """The transform under test: two UNet calls an edit."""

    def build(keys: Any = "image", **options: Any) -> DiffusionLocalInpaintd:
        chosen = {"label_key": "label", "model": random_inpainter, "num_inference_steps": STEPS, "guidance_scale": 1.0, **options}
        return DiffusionLocalInpaintd(keys, **chosen)

    return build


def make_sample(index: int = 0, size: tuple[int, ...] = (40, 44)) -> dict[str, Any]:
    """A picture or volume with a lesion, its label, a mask, a prompt and an id."""
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(index)) * 100
    mask = torch.zeros(1, *size)
    mask[(slice(None), slice(10 + index % 5, 22 + index % 5), slice(12, 26), *[slice(1, 3)] * (len(size) - 2))] = 1
    affine = torch.diag(torch.tensor([1.5, 2.0, 3.0, 1.0]))
    return {
        "image": MetaTensor(image, affine=affine),
        "mask": MetaTensor(mask, affine=affine),
        "label": MetaTensor(torch.zeros_like(mask, dtype=torch.uint8), affine=affine),
        "prompt": PROMPT,
        "id": f"case-{index}",
    }


@pytest.fixture
def samples() -> Callable[..., list[dict[str, Any]]]:
    def build(count: int, size: tuple[int, ...] = (40, 44)) -> list[dict[str, Any]]:
        return [make_sample(i, size) for i in range(count)]

    return build


@pytest.fixture
def sample() -> dict[str, Any]:
    return make_sample()


@pytest.fixture
def was_edited() -> Callable[..., bool]:
    """Changed inside the mask, bit-identical far from it."""

    def check(after: dict[str, Any], before: dict[str, Any], key: str = "image") -> bool:
        changed = torch.as_tensor(after[key]) != torch.as_tensor(before[key])
        inside = torch.as_tensor(before["mask"]) > 0
        far = torch.nn.functional.max_pool2d((inside.any(-1) if inside.ndim == 4 else inside).float(), 13, 1, 6) == 0
        far = far[..., None].expand_as(changed) if inside.ndim == 4 else far
        return bool(changed[inside].any()) and not bool(changed[far].any()) and after[f"{key}_diffaug"]["applied"] is True

    return check
