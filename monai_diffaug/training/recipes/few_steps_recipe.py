"""Train a student of an inpainter that repaints in a few steps, without the second UNet evaluation of guidance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.painting import PLAIN, Painting
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.sampling.step import clean_and_noise, ddim_move
from monai_diffaug.training.captions import with_dropout
from monai_diffaug.training.crop_sampler import CropBatch
from monai_diffaug.training.diffusion_loss import encode_crops, forward_process, lesion_weights
from monai_diffaug.training.encoded_ring import EncodedRing
from monai_diffaug.training.recipes.inpaint_recipe import InpaintRecipe
from monai_diffaug.training.run_settings import TrainingInputError

__all__ = ["FewStepsRecipe", "student_timesteps", "velocity_of"]

RATE = 2e-4
TEACHER_STEPS = 12  # of a full run of the teacher; one step of the student stands for several of them
EMPTY_SHARE = 0.1  # of the captions: what a user without a prompt gets


class FewStepsRecipe(InpaintRecipe):
    """Distil a diffusers inpainting model: one step of the student does what several guided DDIM steps of the model do.

    The loss is that of progressive distillation (Salimans and Ho, ICLR 2022, algorithm 2), with the guidance of the teacher distilled in
    (Meng et al., CVPR 2023) and timesteps restricted to those that the student will be run at, as in Fast-DDPM (Jiang et al., 2024):
    noised crops at a timestep of the student go through the guided DDIM steps of the teacher to the student's next timestep; the student
    learns the velocity that leads there in one step. Pixels under the mask count twice. The student keeps text encoder and autoencoder of
    the model; its scheduler is DDIM with "trailing" spacing.

    A student is run with the steps that it was trained for, ``num_inference_steps`` = ``settings.student_steps``; its folder says that it
    needs no guidance::

        monai-diffaug train few-steps --data datalist.json --model my_model --student-steps 4 --out my_student

    ``settings.model`` is "tiny", a diffusers folder or a hub id; ``settings.guidance`` is the scale of the teacher's guidance.

    Raises:
        ModelSourceError: nothing loadable under the source.
        TrainingInputError: ``settings.model`` is "fresh", or predicts noise and has to start where there is nothing but noise.

    Source: Salimans and Ho 2022, Meng et al. 2023, Jiang et al. 2024.
    """

    name = "few-steps"
    options = ("student_steps", "guidance")

    def build(self) -> None:
        from diffusers import DDIMScheduler

        settings = self.settings
        if self.is_fresh:
            raise TrainingInputError("few-steps needs a trained model, got --model fresh; train one with 'monai-diffaug train inpaint'")
        self.model = load_inpainter(ModelSpec("inpainter", settings.model), self.device)
        self.model.scheduler = DDIMScheduler.from_config(self.model.scheduler.config, timestep_spacing="trailing", clip_sample=False)
        self.size_px = self.model.size_px
        self.trains_text = self.trains_decoder = False
        self.adapters: dict[str, Any] = {}
        self.process = forward_process(self.model.scheduler)
        self.kind = str(self.process.config.prediction_type)
        self.alphas: list[float] = self.process.alphas_cumprod.double().tolist()
        self.starts = student_timesteps(len(self.alphas), settings.student_steps)
        if ddim_move(self.kind, self.alphas[self.starts[0]], 1.0) is None:
            raise TrainingInputError(
                f"few-steps cannot start from pure noise with a model that predicts {self.kind!r}: its scheduler ends at zero signal; "
                "give a model with v_prediction"
            )
        self.teacher = deepcopy(self.model.unet).eval().requires_grad_(False)
        self.model.unet.requires_grad_(True)
        self.modules, self.rate = {"unet": self.model.unet}, RATE

    @property
    def paintings(self) -> Mapping[str, Painting]:
        """Those of the teacher, without guidance."""
        taught = {"default": PLAIN, **self.model.paintings}
        return {modality: replace(each, guidance_scale=1.0) for modality, each in taught.items()}

    def loss(self, progress: float = 0.0) -> Tensor:
        (latents, mask, masked, *_), captions = self.ring.batch(self.settings.batch_size)
        texts = with_dropout(captions, EMPTY_SHARE, self.generator)
        index = int(torch.randint(len(self.starts), (), generator=self.generator))
        noise = torch.randn(latents.shape, generator=self.generator).to(latents)
        start = self.starts[index]
        end = self.starts[index + 1] if index + 1 < len(self.starts) else -1
        noisy = self.process.add_noise(latents, noise, torch.full((len(latents),), start, device=latents.device))
        extra = [mask, masked] if self.model.takes_mask else []
        context = self.model.encode_text(texts)
        target = self._teacher_velocity(noisy, extra, context, start, end)
        prediction = self.model.denoise(torch.cat([noisy, *extra], 1), torch.tensor(start, device=latents.device), context)
        velocity = velocity_of(self.kind, prediction.float(), noisy.float(), self.alphas[start])
        return ((velocity - target).square() * lesion_weights(mask.float())).mean()

    @torch.no_grad()
    def _teacher_velocity(self, noisy: Tensor, extra: list[Tensor], context: Tensor, start: int, end: int) -> Tensor:
        """The velocity at ``start`` whose single step ends where the teacher's guided steps from ``start`` to ``end`` end."""
        guided = self.settings.guidance > 1
        states = torch.cat([self.model.encode_text([""]).expand_as(context), context]) if guided else context
        count = max(1, round(TEACHER_STEPS / len(self.starts)))
        stops = [start - round((start - end) * (i + 1) / count) for i in range(count)]
        reached, student = noisy.float(), self.model.unet
        self.model.unet = self.teacher
        try:
            now = start
            for stop in stops:
                rows = torch.cat([reached.to(noisy), *extra], 1)
                rows = torch.cat([rows, rows]) if guided else rows
                prediction = self.model.denoise(rows, torch.tensor(now, device=noisy.device), states).float()
                if guided:
                    unconditional, conditional = prediction.chunk(2)
                    prediction = torch.lerp(unconditional, conditional, self.settings.guidance)
                keep, move = self._move(self.kind, now, stop)
                reached = keep * reached + move * prediction
                now = stop
        finally:
            self.model.unet = student
        keep, move = self._move("v_prediction", start, end)
        return (reached - keep * noisy.float()) / move

    def _move(self, kind: str, now: int, then: int) -> tuple[float, float]:
        """``ddim_move`` between two timesteps; -1 is the end of a run, as the scheduler of the model has it."""
        end = self.alphas[then] if then >= 0 else float(self.model.scheduler.final_alpha_cumprod)
        pair = ddim_move(kind, self.alphas[now], end)
        if pair is None:
            raise ValueError(f"a model that predicts {kind!r} makes no step from a cumulative alpha of {self.alphas[now]:g}")
        return pair

    def _encode(self, batch: CropBatch) -> tuple[Tensor, ...]:
        return tuple(encode_crops(self.model, batch.images, batch.hidden))

    def reseed(self, seed: int) -> None:
        super().reseed(seed)
        self.ring = EncodedRing(self.crops, self._encode)


def student_timesteps(num_train_timesteps: int, steps: int) -> list[int]:
    """The timesteps of a run of ``steps`` steps with "trailing" spacing, from the noisiest on.

    Raises:
        TrainingInputError: ``steps`` is below 1 or above the number of timesteps.

    >>> student_timesteps(1000, 4)
    [999, 749, 499, 249]
    """
    if not 1 <= steps <= num_train_timesteps:
        raise TrainingInputError(f"--student-steps must be in [1, {num_train_timesteps}], got {steps}")
    return [round(num_train_timesteps - i * num_train_timesteps / steps) - 1 for i in range(steps)]


def velocity_of(kind: str, prediction: Tensor, latents: Tensor, alpha: float) -> Tensor:
    """The velocity signal * noise - sigma * clean that follows from a prediction.

    Args:
        kind: "v_prediction", "epsilon" or "sample".
        prediction: of the UNet.
        latents: its input.
        alpha: cumulative alpha of the timestep, in (0, 1).

    Raises:
        ValueError: the prediction does not determine the velocity, e.g. the noise at zero signal.

    >>> clean, noise, alpha = torch.tensor(2.0), torch.tensor(1.0), 0.36
    >>> latents = 0.6 * clean + 0.8 * noise
    >>> [round(float(velocity_of(kind, p, latents, alpha)), 4) for kind, p in (("epsilon", noise), ("sample", clean))]
    [-1.0, -1.0]
    """
    if kind == "v_prediction":
        return prediction
    signal, sigma = math.sqrt(alpha), math.sqrt(1 - alpha)
    parts = clean_and_noise(kind, signal, sigma)
    if parts is None:
        raise ValueError(f"a model that predicts {kind!r} gives no velocity at a cumulative alpha of {alpha:g}")
    (clean_l, clean_p), (noise_l, noise_p) = parts
    return signal * (noise_l * latents + noise_p * prediction) - sigma * (clean_l * latents + clean_p * prediction)
