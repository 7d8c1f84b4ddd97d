from __future__ import annotations

import diffusers
import pytest
import torch

from monai_diffaug.sampling.schedule import prepare_schedule

CPU = torch.device("cpu")
SCHEDULERS = [
    "DDIMScheduler",
    "PNDMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_single_step_starts_from_pure_noise_with_any_spacing(name) -> None:
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}  # as Stable Diffusion's; otherwise it needs 4 steps
    _, timesteps = prepare_schedule(getattr(diffusers, name)(**options), 1, 1.0, CPU)
    assert int(timesteps[0]) >= 990


def test_more_steps_keep_the_spacing_of_the_scheduler() -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing="leading")
    _, timesteps = prepare_schedule(scheduler, 4, 1.0, CPU)
    scheduler.set_timesteps(4)
    assert timesteps.tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
@pytest.mark.parametrize("steps", [77, 251, 334, 501, 600, 949])
def test_leading_spacing_with_many_steps_starts_from_pure_noise(name, steps) -> None:
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    scheduler = getattr(diffusers, name)(timestep_spacing="leading", **options)
    plain = getattr(diffusers, name)(timestep_spacing="leading", **options)
    plain.set_timesteps(steps)
    _, timesteps = prepare_schedule(scheduler, steps, 1.0, CPU)
    late = float(plain.timesteps[0]) < 948.9
    assert float(timesteps[0]) >= 940 and len(timesteps) == len(plain.timesteps) and float(timesteps[-1]) <= 1000 / steps
    assert late or timesteps.tolist() == plain.timesteps.tolist()


def test_the_timesteps_of_diffusers_with_501_leading_steps_start_in_the_middle() -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing="leading")
    scheduler.set_timesteps(501)
    assert int(scheduler.timesteps[0]) == 500  # if diffusers mends it, the repair can go
    repaired, timesteps = prepare_schedule(scheduler, 501, 1.0, CPU)
    assert int(timesteps[0]) == 999 and repaired.timesteps.tolist() == timesteps.tolist()


@pytest.mark.parametrize("steps", [2, 4, 8, 12, 20, 25, 30, 40, 50, 60, 100, 200, 250, 500, 1000])
def test_usual_numbers_of_steps_keep_leading_spacing(steps) -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    assert prepare_schedule(scheduler, steps, 1.0, CPU)[1].tolist() == scheduler.timesteps.tolist()


def test_a_run_of_the_suggested_scheduler_is_not_clipped() -> None:
    config = diffusers.EulerDiscreteScheduler().config
    assert diffusers.DDIMScheduler.from_config(config).config.clip_sample  # what diffusers does without the option
    assert not diffusers.DDIMScheduler.from_config(config, clip_sample=False).config.clip_sample


def test_strength_removes_the_first_steps() -> None:
    whole = prepare_schedule(diffusers.DDIMScheduler(), 8, 1.0, CPU)[1]
    assert prepare_schedule(diffusers.DDIMScheduler(), 8, 0.5, CPU)[1].tolist() == whole[4:].tolist()


def test_the_original_scheduler_is_not_changed() -> None:
    scheduler = diffusers.DDIMScheduler()
    prepare_schedule(scheduler, 7, 1.0, CPU)
    assert scheduler.num_inference_steps is None


@pytest.mark.parametrize(("steps", "strength", "message"), [(8, 0.0, "strength"), (8, 1.5, "strength"), (0, 1.0, "num_inference_steps")])
def test_numbers_out_of_range_are_refused(steps, strength, message) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_schedule(diffusers.DDIMScheduler(), steps, strength, CPU)


@pytest.mark.parametrize(("name", "strength"), [("FlowMatchEulerDiscreteScheduler", 1.0), ("IPNDMScheduler", 0.5)])
def test_a_scheduler_that_cannot_add_noise_is_refused_with_an_alternative(name, strength) -> None:
    with pytest.raises(ValueError, match=rf"{name} cannot put noise .* e\.g\. DDIMScheduler\.from_config\(config, clip_sample=False\)"):
        prepare_schedule(getattr(diffusers, name)(), 4, strength, CPU)
    prepare_schedule(diffusers.IPNDMScheduler(), 4, 1.0, CPU)
