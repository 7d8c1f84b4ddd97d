"""What is edited and how, the same in every arm; and how much is measured."""

from __future__ import annotations

from dataclasses import dataclass

from monai_diffaug.edit.options import InpaintOptions, Region, Run, SoftEdge
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

__all__ = ["FULL", "GREY", "QUICK", "Amount", "EditSettings"]

GREY = (0.0, 255.0)  # the window of the volumes


@dataclass(frozen=True)
class EditSettings:
    """One edit: whole slices, a hard mask, DDIM; what diffusers' pipeline can do as well.

    Attributes:
        steps: of the sampler.
        guidance_scale: of both arms.
        prompt: what is painted.
        seed: of the noise.
        batch_size: slices in one model call; None leaves it to the transform, as most users do.
    """

    steps: int = 12
    guidance_scale: float = 3.0
    prompt: str = "ultrasound of breast, benign mass, hypoechoic"
    seed: int = 20250101
    batch_size: int | None = None

    @property
    def guided(self) -> bool:
        """Two UNet evaluations a step."""
        return self.guidance_scale > 1

    def transform(self, model: Inpainter, *, roi: bool = False) -> DiffusionLocalInpaint:
        """This package's arm."""
        return DiffusionLocalInpaint(
            model,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            window=GREY,
            options=InpaintOptions(
                soft_edge=SoftEdge(width_px_at_512=0.0), run=Run(slice_batch_size=self.batch_size), region=Region(whole_slice=not roi)
            ),
        )


@dataclass(frozen=True)
class Amount:
    """How much is measured.

    Attributes:
        rounds: interleaved rounds; 7 or more for a 95 % interval.
        volumes: (side of a slice in pixels, slices) of each volume.
        steps: of the sampler; each ``other_steps`` adds a row for the first volume.
        larger_models: the 25 M UNet, SAM's ViT-B, and on a GPU the size of Stable Diffusion 1.5.
        images: of the quality table.
        reference_steps: of the result that the quality table compares with.
    """

    rounds: int = 7
    volumes: tuple[tuple[int, int], ...] = ((64, 16), (128, 8))
    steps: int = 8
    other_steps: tuple[int, ...] = (4,)
    larger_models: bool = True
    images: int = 16
    reference_steps: int = 50


FULL = Amount()
QUICK = Amount(rounds=3, volumes=((64, 16),), steps=4, other_steps=(), larger_models=False, images=3, reference_steps=24)
