from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler
from torch import Tensor

from monai_diffaug.sampling.coherent_noise import CoherentDraws, CoherentNoise, LatentPlace
from monai_diffaug.sampling.seeding import slice_generators
from monai_diffaug.sampling.step import make_step


def place(index: int, *, seed: int = 7, slice_mm: float = 1.0, top_mm: float = -16.0) -> LatentPlace:
    return LatentPlace(seed, index, slice_mm, top_mm, left_mm=-16.0, pixel_mm=1.0, half_mm=40.0)


def white(indices: list[int], seed: int = 7) -> Tensor:
    return torch.stack([torch.randn(4, 32, 32, generator=generator) for generator in slice_generators(seed, indices)])


def low_correlation(a: Tensor, b: Tensor, pixels: int = 8) -> float:
    a, b = (F.avg_pool2d(part, pixels).flatten() for part in (a, b))
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def test_each_slice_is_standard_normal_white_noise() -> None:
    noise = torch.cat([CoherentNoise([place(0, seed=seed)], 8.0)(white([0], seed)) for seed in range(300)])
    power = torch.fft.fft2(noise).abs().square().mean((0, 1)) / 32**2
    assert float(power.min()) > 0.85 and float(power.max()) < 1.15


def test_low_frequencies_stay_together_over_millimetres_whatever_the_distance_of_the_slices() -> None:
    indices = list(range(40))
    for slice_mm in (1.0, 4.0):
        noise = CoherentNoise([place(i, slice_mm=slice_mm) for i in indices], 8.0)(white(indices))
        near = low_correlation(noise[: -round(4 / slice_mm)], noise[round(4 / slice_mm) :])
        far = low_correlation(noise[: -round(24 / slice_mm)], noise[round(24 / slice_mm) :])
        assert 0.25 < near < 0.6 and abs(far) < 0.15
        fine = noise - F.interpolate(F.avg_pool2d(noise, 8), scale_factor=8.0)
        assert abs(float((fine[1:] * fine[:-1]).mean())) < 0.15  # nothing like columns


def test_it_is_tied_to_the_patient_not_to_the_square_of_a_slice() -> None:
    indices = list(range(30))
    centred = CoherentNoise([place(i) for i in indices], 8.0)(white(indices))
    moved = CoherentNoise([place(i, top_mm=-8.0) for i in indices], 8.0)(white(indices, seed=8))
    assert low_correlation(centred[:, :, 8:], moved[:, :, :-8]) > 0.35 > 0.25 > abs(low_correlation(centred, moved))


def test_a_slice_does_not_depend_on_its_batch_in_any_draw() -> None:
    indices = [4, 5, 6, 9]
    together = CoherentNoise([place(i) for i in indices], 8.0)
    draws = [together(white(indices)) for _ in range(3)]
    assert not torch.equal(draws[0], draws[1])
    for k in range(len(indices)):
        alone = CoherentNoise([place(indices[k])], 8.0)
        for draw in draws:
            assert torch.allclose(alone(white(indices)[k : k + 1]), draw[k : k + 1], atol=1e-5)


@pytest.mark.parametrize("scheduler", [DDPMScheduler(clip_sample=False), EulerAncestralDiscreteScheduler()])
def test_stochastic_schedulers_draw_coherent_noise_at_each_step(scheduler: DDPMScheduler) -> None:
    indices = list(range(3, 23))
    scheduler.set_timesteps(4)

    def latents_of(coherent: bool) -> list[Tensor]:
        scheduler.set_timesteps(4)
        generators = slice_generators(7, indices)
        draws = CoherentDraws(generators, CoherentNoise([place(i) for i in indices], 8.0)) if coherent else None
        step = make_step(scheduler, scheduler.timesteps, generators, draws=draws)
        results = []
        for i in range(2):
            scheduler.scale_model_input(torch.zeros(20, 4, 32, 32), scheduler.timesteps[i])
            results.append(step(i, torch.zeros(20, 4, 32, 32), torch.zeros(20, 4, 32, 32)))
        return results

    for plain, coherent in zip(latents_of(False), latents_of(True), strict=True):
        assert float(coherent.std()) == pytest.approx(float(plain.std()), rel=0.05)
        assert low_correlation(coherent[:-1], coherent[1:]) > 0.3 > 0.1 > abs(low_correlation(plain[:-1], plain[1:]))


def test_other_draws_are_left_alone() -> None:
    generators = slice_generators(7, [0])
    with CoherentDraws(generators, CoherentNoise([place(0)], 8.0)):
        other = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    assert torch.equal(other, torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3)))
