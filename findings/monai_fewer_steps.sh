#!/usr/bin/env bash
# MONAI 1.6.1 (torch 2.13.0): DDPMScheduler with fewer steps than it was trained with gives noise; DDIMScheduler is worse with 501 steps
# than with 500.
#
# Input:    scheduler.set_timesteps(n) and DiffusionInferer.sample, as documented, with a model that predicts the noise exactly: the data
#           are normal with mean 2 and standard deviation 0.5, so the best prediction has a closed form. clip_sample=False.
# Expected: samples with mean 2 and standard deviation 0.5 for any number of steps; a little less exact with few.
# Happens:  DDPM: set_timesteps(50) lists 50 timesteps, 20 apart, but step() always goes from t to t - 1, and the model is then told that
#           the sample is at t - 20. Most of the noise is never taken away: after 50 steps the samples are nearly pure noise (mean 0.26,
#           standard deviation 0.92), after 500 their mean is still a fifth short.
#           DDIM: the timesteps run from 999 to 0 in equal parts, but step() goes down by 1000 // n. Where n does not divide 1000 the two
#           come apart: with 501 steps it goes down by 1, while the next timestep is 2 lower.
#           No warning; the list of timesteps looks right.
# Matters:  with a trained network the result is a grainy or washed-out image, which is blamed on the network; DDPM at 500 of 1000 steps
#           looks plausible and has the wrong distribution, which is what synthetic training data are judged by.
# Way out:  all steps with DDPM; with DDIM a number that divides the training steps.
#
# Output seen:
#   DDPMScheduler, 1000 steps: mean 2.01, standard deviation 0.49
#   DDPMScheduler, 500 steps: mean 1.56, standard deviation 0.60
#   DDPMScheduler, 250 steps: mean 1.04, standard deviation 0.73
#   DDPMScheduler, 50 steps: mean 0.26, standard deviation 0.92
#   DDIMScheduler, 1000 steps: mean 1.99, standard deviation 0.50
#   DDIMScheduler, 500 steps: mean 1.99, standard deviation 0.49
#   DDIMScheduler, 501 steps: mean 1.22, standard deviation 0.70
#   DDIMScheduler, 600 steps: mean 1.40, standard deviation 0.65
#   DDIMScheduler, 50 steps: mean 1.97, standard deviation 0.48
#   warnings: 0
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet monai==1.6.1 torch==2.13.0 numpy==2.4.6
cd "$work"
OMP_NUM_THREADS=1 venv/bin/python - <<'PYTHON'
import warnings

import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

MEAN, SPREAD = 2.0, 0.5


class ExactNoise(torch.nn.Module):
    def __init__(self, scheduler):
        super().__init__()
        self.kept = scheduler.alphas_cumprod

    def forward(self, x, timesteps, context=None):
        kept = self.kept[timesteps.long()].view(-1, *[1] * (x.ndim - 1))
        return (1 - kept).sqrt() * (x - kept.sqrt() * MEAN) / (kept * SPREAD**2 + 1 - kept)


def sample(kind, steps):
    torch.manual_seed(0)
    scheduler = kind(num_train_timesteps=1000, clip_sample=False)
    scheduler.set_timesteps(steps)
    noise = torch.randn(1, 1, 64, 64)
    images = DiffusionInferer(scheduler).sample(noise, ExactNoise(scheduler), scheduler, verbose=False)
    return len(scheduler.timesteps), float(images.mean()), float(images.std())


means = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for kind, numbers in ((DDPMScheduler, (1000, 500, 250, 50)), (DDIMScheduler, (1000, 500, 501, 600, 50))):
        for steps in numbers:
            count, mean, spread = sample(kind, steps)
            print(f"{kind.__name__}, {count} steps: mean {mean:.2f}, standard deviation {spread:.2f}")
            means[kind.__name__, steps] = mean, spread
print(f"warnings: {len(caught)}")

right = [means["DDPMScheduler", 1000], *(means["DDIMScheduler", n] for n in (1000, 500, 50))]
assert all(abs(mean - MEAN) < 0.05 and abs(spread - SPREAD) < 0.04 for mean, spread in right)
assert 1.4 < means["DDPMScheduler", 500][0] < 1.7 and means["DDPMScheduler", 50][0] < 0.4 and means["DDPMScheduler", 50][1] > 0.85
assert means["DDIMScheduler", 501][0] < 1.4 and means["DDIMScheduler", 501][1] > 0.6
PYTHON
