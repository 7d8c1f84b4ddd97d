"""Few-step solvers in place of the model's own scheduler."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from monai_diffaug.edit.options import InpaintOptions, Run, SoftEdge
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.studies.speed.timed_models import with_scheduler
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

SOLVERS = ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler"]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_few_step_solver_repaints_each_slice_alike_in_any_batch(name: str, random_inpainter: str) -> None:
    import diffusers

    model = with_scheduler(load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu")), getattr(diffusers, name))
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros_like(image)
    mask[:, 20:44, 16:40] = 1
    edits: list[Any] = [
        DiffusionLocalInpaint(
            model, num_inference_steps=4, options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=0), run=Run(slice_batch_size=size))
        ).apply(image, mask, "a cyst", seed=3)
        for size in (1, 3)
    ]
    one, three = (torch.as_tensor(edit.image) for edit in edits)
    assert all(edit.record["applied"] for edit in edits) and torch.isfinite(three).all()
    assert torch.equal(three[mask == 0], image[mask == 0]) and (three != image)[mask > 0].float().mean() > 0.9
    torch.testing.assert_close(one, three, rtol=0, atol=1e-5)
    assert type(model.scheduler).__name__ == name and model.scheduler.num_inference_steps is None
