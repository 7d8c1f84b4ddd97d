from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from monai_diffaug.edit.options import InpaintOptions, Noise, Run
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

PROMPT = "CT of abdomen, liver metastasis"
THREE_PLANES = {"noise": Noise(coherence_mm=6.0, acquisition=True), "joined_mm": 4.0}


def volume() -> torch.Tensor:
    return torch.randn(1, 48, 44, 7, generator=torch.Generator().manual_seed(0)) * 10 + 40


def mask() -> torch.Tensor:
    region = torch.zeros(1, 48, 44, 7)
    region[:, 15:29, 12:26, 1:6] = 1
    region[:, 18:22, 14:18, 1] = 0
    return region


@pytest.fixture
def fast(random_inpainter: str) -> dict[str, object]:
    return {"model": random_inpainter, "num_inference_steps": 2, "window": (0, 80)}


def paint(fast: dict[str, object], image: torch.Tensor, batch: int | None = None, **options: object) -> torch.Tensor:
    chosen = InpaintOptions(**{**THREE_PLANES, **options}, run=Run(slice_batch_size=batch))
    return torch.as_tensor(DiffusionLocalInpaint(**fast, options=chosen).apply(image, mask(), PROMPT, seed=4).image)


def test_the_result_does_not_depend_on_the_slice_batch_size(fast) -> None:
    results = [paint(fast, volume(), n) for n in (1, 2, 8)]
    assert torch.allclose(results[0], results[1], atol=1e-2) and torch.allclose(results[0], results[2], atol=1e-2)


def test_a_batch_of_requests_gives_what_each_gives_alone(fast) -> None:
    inpaint = DiffusionLocalInpaint(**fast, options=InpaintOptions(**THREE_PLANES))
    images, masks = [volume(), volume().flip(3)], [mask(), mask()]
    together = inpaint.apply_batch(images, masks, [PROMPT] * 2, seeds=[4, 5])
    for i in range(2):
        alone = inpaint.apply(images[i], masks[i], PROMPT, seed=4 + i)
        assert torch.allclose(torch.as_tensor(together[i].image), torch.as_tensor(alone.image), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_far_from_the_mask_every_voxel_is_bit_identical(fast, dtype) -> None:
    image = volume().to(dtype)
    edited = paint(fast, image)
    far = torch.nn.functional.max_pool2d(mask().permute(3, 0, 1, 2), 13, 1, 6).permute(1, 2, 3, 0) == 0
    assert edited.dtype == dtype and torch.equal(edited[far], image[far]) and not torch.equal(edited, image)


def test_each_option_changes_a_volume_and_coherence_and_joining_leave_pictures_alone(fast) -> None:
    off = {"noise": Noise(), "joined_mm": 0.0}
    plain = paint(fast, volume(), **off)
    for options in ({"noise": Noise(coherence_mm=6.0)}, {"noise": Noise(acquisition=True)}, {"joined_mm": 4.0}):
        assert not torch.equal(paint(fast, volume(), **{**off, **options}), plain)
    picture, region = volume()[..., 3], mask()[..., 3]
    first, second = (
        DiffusionLocalInpaint(**fast, options=options).apply(picture, region, PROMPT, seed=4).image
        for options in (InpaintOptions(), InpaintOptions(noise=Noise(coherence_mm=6.0), joined_mm=4.0))
    )
    assert torch.equal(first, second)


def test_with_a_stochastic_scheduler_it_does_not_depend_on_the_batch_either(fast) -> None:
    inpainter = load_inpainter(ModelSpec("inpainter", str(fast["model"])), torch.device("cpu"))
    noisy = replace(inpainter, scheduler=DDPMScheduler.from_config(inpainter.scheduler.config, clip_sample=False))
    settings = {**fast, "model": noisy, "num_inference_steps": 3}
    coherent = [paint(settings, volume(), n) for n in (1, 8)]
    assert torch.allclose(coherent[0], coherent[1], atol=1e-2)
    assert not torch.allclose(coherent[0], paint(settings, volume(), noise=Noise(acquisition=True)), atol=1)
