"""Fixtures for what runs on a GPU, run on a pretended one: no test here needs a GPU.

``tests/pretend_cuda.py`` says what the pretence checks (devices of operands, NumPy, generators, types without kernels, waiting while a
graph is captured) and what it cannot (numbers, memory, streams, NCCL, autocast's casts, other threads). Results must be those of the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from monai_diffaug.edit.options import ControlNet, SemanticController
from monai_diffaug.models import registry
from monai_diffaug.models.controlnet import build_controlnet
from monai_diffaug.models.semantic_controller import build_semantic_model, save_semantic_controller
from tests.cuda.edits import CPU, loaded
from tests.pretend_cuda import Gpu, pretended_gpus


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with pretended_gpus(2) as pretended:
        yield pretended


@pytest.fixture(scope="module", autouse=True)
def models_are_dropped_at_the_end() -> Iterator[None]:
    yield
    registry.clear()
    loaded.cache_clear()


@pytest.fixture(scope="module")
def steering(random_inpainter: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Folders of a ControlNet and of a semantic controller for the random model."""
    model, folder = loaded(random_inpainter, CPU), tmp_path_factory.mktemp("steering")
    build_controlnet(model.unet, model.factor).save_pretrained(folder / "controlnet")
    semantic = build_semantic_model(model, grid=4)
    save_semantic_controller(semantic.config, semantic.parts, folder / "semantic")
    return {"controlnet": ControlNet(str(folder / "controlnet")), "semantic": SemanticController(str(folder / "semantic"))}
