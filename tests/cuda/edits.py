"""Small edits and models for the tests on pretended GPUs, and the devices that they name."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from tests.pretend_cuda import plain_cpu

GPU, OTHER, CPU = torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-3}  # of images from 0 to 1


def picture(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An image in [0, 1] and a mask; of a volume the mask touches two slices."""
    image = torch.rand(1, *(shape or (48, 48)), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros_like(image, dtype=torch.uint8)
    mask[:, 12:30, 16:34, ...] = 1
    if image.ndim == 4:
        mask[..., 0], mask[..., 3:] = 0, 0
    return image, mask


def on_cpu(array: Any) -> Tensor:
    return torch.as_tensor(array.cpu() if isinstance(array, Tensor) else array).as_subclass(Tensor)


def edited(image: Any, mask: Any, model: Any, seed: int = 3, **options: Any) -> Any:
    transform = DiffusionLocalInpaint(model, **{"num_inference_steps": 2, "window": (0.0, 1.0), **options})
    edit = transform.apply(image, mask, "a cyst", seed=seed)
    assert edit.record["applied"], edit.record["reason"]
    return edit.image


def edited_on_cpu(*args: Any, **options: Any) -> Tensor:
    with plain_cpu():
        return on_cpu(edited(*args, **options))


@cache
def loaded(folder: str, device: torch.device) -> Inpainter:
    """Not to be changed."""
    return load_inpainter(ModelSpec("inpainter", folder), device)
