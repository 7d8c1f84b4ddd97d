"""Masks, verdicts, batches and the transforms without a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from torch import Tensor

from monai_diffaug.data.lesion_bank import LesionBank
from monai_diffaug.edit.validation_options import Dynamic, Screen, Validator
from monai_diffaug.models.latent_screen import ScreenConfig, ScreenNetwork
from monai_diffaug.transforms.batch import BatchLocalInpaint, PrepareBatchInpaint
from monai_diffaug.transforms.edge_map import EdgeMap
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.medsam_mask import MedSAMMask
from monai_diffaug.transforms.patch_merge import RandPatchMerge
from monai_diffaug.transforms.place_mask import PlaceMaskd
from monai_diffaug.transforms.soft_mask import SoftMask
from tests.cuda.edits import CLOSE, CPU, GPU, on_cpu, picture
from tests.pretend_cuda import Gpu, plain_cpu


@pytest.mark.parametrize(("where", "device"), [("cpu", "cuda"), ("cuda", None), ("cuda:1", "cuda:0"), ("cuda", "cpu")])
def test_medsam_masks_come_back_where_the_image_was(gpu: Gpu, where: str, device: str | None) -> None:
    image, label = picture()
    options: dict[str, Any] = {"min_iou": 0.0, "window": (0.0, 1.0), "dtype": "bfloat16" if where == "cpu" else "float32"}
    mask = MedSAMMask(device=device, **options).apply(image.to(where), label, seed=1)
    assert mask.device == torch.device(where if where != "cuda" else "cuda:0")
    with plain_cpu():
        assert torch.equal(on_cpu(mask), MedSAMMask(**options).apply(image, label, seed=1))


def test_a_medsam_mask_walks_through_a_volume_on_a_gpu(gpu: Gpu) -> None:
    image, label = picture(32, 40, 4)
    masker = MedSAMMask(propagate=True, min_iou=0.0)
    on_gpu = masker.apply(MetaTensor(image, affine=torch.eye(4)).to("cuda"), label, seed=1)
    assert on_gpu.device == GPU and torch.equal(on_cpu(on_gpu), masker.apply(image, label, seed=1))


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_verdict_on_a_gpu_is_that_of_the_cpu(gpu: Gpu, device: str | None) -> None:
    image, mask = picture(64, 64)
    with plain_cpu():
        expected = LatentValidate()(image, mask, image * 0.5, seed=1)
    verdict = LatentValidate(device=device)(MetaTensor(image).to("cuda"), mask, image * 0.5, seed=1)
    assert verdict.score == pytest.approx(expected.score, abs=1e-3) and verdict.predicted.device == GPU


def test_screened_retries_with_a_guard_run_on_a_gpu(gpu: Gpu, random_inpainter: str) -> None:
    samples = [dict(zip(("image", "label"), picture(seed=seed), strict=True)) for seed in range(3)]
    bank = LesionBank.of([{key: value.to("cuda") for key, value in sample.items()} for sample in samples])
    image, mask = (MetaTensor(part).to("cuda") for part in picture())
    inpaint = DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=2)
    common: dict[str, Any] = {"label_key": "label", "inpaint": inpaint, "model": lambda x: x[:, :1] * 0 + 1}
    screen = ScreenNetwork(ScreenConfig())
    for least in (0.0, 1.0):
        validated = LatentValidated(
            "image",
            screen=Screen(screen, min_dice=least, after=0.5),
            validator=Validator(on_exhausted="flag", refine_label=True),
            dynamic=Dynamic(),
            novelty=bank,
            on_reject="retry",
            max_tries=2,
            min_dice=1.0,
            **common,
        )
        result = validated({"image": image, "mask": mask, "label": mask, "prompt": "a cyst"})
        assert result["image"].device == result["label"].device == GPU
    accepting = LatentValidated(
        "image", min_dice=0.0, validator=Validator(max_false_positive=9.0, min_change=0.0, refine_label=True), **common
    )
    refined = accepting({"image": image, "mask": mask, "label": mask.cpu(), "prompt": "a cyst"})
    assert refined["image_diffaug"]["accepted"] and refined["label"].device == CPU


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_batch_is_repainted_where_it_is(gpu: Gpu, random_inpainter: str, device: str | None) -> None:
    items = []
    for seed in range(3):
        image, mask = (MetaTensor(part, affine=torch.eye(4)) for part in picture(seed=seed))
        items.append({"image": image, "mask": mask, "label": mask, "prompt": "a cyst"})
    transform = DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=1, device=device, prob=0.7)
    with plain_cpu():
        expected = BatchLocalInpaint(transform, seed=1)(list_data_collate(items))
    batch = {key: value.to("cuda") if isinstance(value, Tensor) else value for key, value in list_data_collate(items).items()}
    result = BatchLocalInpaint(transform, seed=1)(batch)
    assert result["image"].device == result["label"].device == GPU
    torch.testing.assert_close(on_cpu(result["image"]), on_cpu(expected["image"]), **CLOSE)
    image_batch, label = PrepareBatchInpaint(BatchLocalInpaint(transform, seed=1))(list_data_collate(items), "cuda", True)
    assert image_batch.device == label.device == GPU


def test_transforms_without_a_model_keep_the_device(gpu: Gpu) -> None:
    image, mask = picture()
    there = MetaTensor(image).to("cuda")
    results = [EdgeMap(method)(there, mask) for method in ("canny", "scharr")]
    assert all(torch.equal(on_cpu(a), on_cpu(EdgeMap(m)(image, mask))) for a, m in zip(results, ("canny", "scharr"), strict=True))
    results += [SoftMask()(mask.to("cuda")), *RandPatchMerge()(there, image), *RandPatchMerge()(image.to("cuda"), there)]
    place = PlaceMaskd("image", label_key="label", region_key="region")
    results.append(place({"image": there, "label": mask * 0, "region": torch.ones_like(mask).to("cuda")})["mask"])
    results.append(PlaceMaskd("image", label_key="label")({"image": there, "label": mask * 0})["mask"])
    assert [result.device for result in results] == [GPU] * len(results)
