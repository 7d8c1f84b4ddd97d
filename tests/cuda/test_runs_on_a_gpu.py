"""Graphs, memory, timing and training."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from monai_diffaug.edit.slice_batches import batch_sizes
from monai_diffaug.models import registry
from monai_diffaug.models.cuda_graphs import GraphedDenoiser
from monai_diffaug.models.medsam import load_medsam
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.studies.speed import timed_models as benchmark_models
from monai_diffaug.studies.speed.inpainting_speed import gates_of
from monai_diffaug.studies.speed.medsam_speed import official_masks
from monai_diffaug.studies.speed.time_and_memory import stopwatch
from monai_diffaug.studies.speed.timed_edits import EditSettings, make_volume
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from tests.cuda.edits import GPU, OTHER, loaded, picture
from tests.pretend_cuda import Gpu


def test_a_recorded_call_waits_for_nothing_and_records_on_its_own_gpu(gpu: Gpu, random_inpainter: str) -> None:
    for where in (GPU, OTHER):
        model = loaded(random_inpainter, where)
        arguments = torch.zeros(2, 9, 16, 16, device=where), torch.tensor(5, device=where), model.encode_text(["a", "b"])
        with torch.no_grad(), torch.autocast("cuda"):
            assert torch.equal(GraphedDenoiser(model.denoise)(*arguments).cpu(), model.denoise(*arguments).cpu())
    assert [graph["device"] for graph in gpu.graphs] == [0, 1]
    assert all(graph["mode"] == "thread_local" and not graph["autocast"] for graph in gpu.graphs)


def test_a_call_that_reads_a_value_is_not_recorded(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    graphed = GraphedDenoiser(lambda latents, timestep, context: latents * float(timestep))
    arguments = torch.ones(2, 4, 8, 8, device=GPU), torch.tensor(3.0, device=GPU), torch.ones(2, 1, 1, device=GPU)
    assert float(graphed(*arguments).mean()) == 3.0
    assert "not permitted when stream is capturing" in caplog.text


def test_the_free_memory_sets_the_batch_sizes(gpu: Gpu, random_inpainter: str) -> None:
    model = loaded(random_inpainter, GPU)
    assert batch_sizes(model, 64, True, None) == (64, 8) and batch_sizes(model, 64, True, 3) == (3, 3)
    wide, narrow = batch_sizes(model, 8192, True, None)
    assert 1 <= wide < 64 and narrow == 1


def test_a_gpu_is_timed_by_its_own_events(gpu: Gpu) -> None:
    stopwatch(lambda: None, OTHER)
    assert gpu.events == [1, 1]


def test_the_arms_of_the_benchmark_agree_on_a_gpu(gpu: Gpu, random_inpainter: str) -> None:
    model = benchmark_models.in_precision(loaded(random_inpainter, GPU), torch.bfloat16)
    gates = gates_of(model, make_volume(64, 2), EditSettings(steps=1), "abc")
    assert all(gate.passed for gate in gates.values()), gates


def test_medsams_script_is_the_rival_on_a_gpu(gpu: Gpu) -> None:
    medsam = registry.shared_model(ModelSpec("medsam"), GPU, load_medsam)
    volume, box = make_volume(64, 1), torch.tensor([[16.0, 16.0, 48.0, 48.0]])
    masks, _ = official_masks(medsam.sam, volume.slices, box, box_as_mask=True)
    assert masks.device == GPU and torch.equal(masks, medsam.decode(medsam.encode(volume.slices), box, (64, 64))[0])


def lesions() -> list[Any]:
    from monai_diffaug.training.labelled_slices import LabelledSlice

    made = []
    for seed in range(1):
        image, mask = picture(64, 64, seed=seed)
        outline = mask[0].numpy() > 0
        made.append(LabelledSlice(image * 2 - 1, outline, outline, "benign mass", "ultrasound", "breast", "", f"slice {seed}"))
    return made


RECIPES = {
    "vae": {"model": "tiny"},
    "inpaint": {"model": "inpainter", "decoder": True},
    "controlnet": {"model": "fresh", "inpainter": "inpainter"},
    "semantic-controller": {"model": "fresh", "inpainter": "inpainter"},
    "validator": {"model": "tiny"},
    "medsam": {"model": "tiny"},
    "latent-screen": {"model": "fresh", "inpainter": "inpainter"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_draws_and_writes_on_a_gpu(gpu: Gpu, random_inpainter: str, tmp_path: Any, monkeypatch: Any, recipe: str) -> None:
    from monai_diffaug.commands.train import _recipe_class
    from monai_diffaug.training import encoded_ring, loop
    from monai_diffaug.training.recipes import latent_screen_recipe, validator_recipe
    from monai_diffaug.training.run_settings import FineTuneSettings

    monkeypatch.setattr(encoded_ring, "FIRST", 4)
    monkeypatch.setattr(latent_screen_recipe, "JUDGED_FIRST", 4)
    monkeypatch.setattr(latent_screen_recipe, "REAL_MASKS_SHARE", 0.0)
    monkeypatch.setattr(validator_recipe, "PROBE_CROPS", 16)
    quick = partial(DiffusionLocalInpaint, num_inference_steps=1)
    monkeypatch.setattr("monai_diffaug.transforms.local_inpaint.DiffusionLocalInpaint", quick)  # of the pictures
    start = {key: random_inpainter if value == "inpainter" else value for key, value in RECIPES[recipe].items()}
    settings = FineTuneSettings(minutes=None, steps=1, batch_size=1, pictures=0, device="cuda", **start)
    trainee = _recipe_class(recipe)(settings, lesions())
    if recipe in ("controlnet", "semantic-controller"):  # they draw as the inpainter does
        monkeypatch.setattr(trainee, "draw", lambda file: None)
    assert loop.fine_tune(trainee, settings, tmp_path) == 1
    assert all(parameter.device == GPU for module in trainee.modules.values() for parameter in module.parameters())
