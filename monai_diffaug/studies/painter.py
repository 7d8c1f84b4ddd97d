"""Edits of a study: the model and the sampler that its options name, the prompts of a data set, and lesions painted into free places."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from monai_diffaug.edit.options import InpaintOptions
from monai_diffaug.geometry.roi import crop, paste, roi_around
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.studies.masked_images import MaskedImage, free_places
from monai_diffaug.studies.study_images import StudyData
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

__all__ = ["Painter", "painted_lesions", "through_vae"]


@dataclass(frozen=True)
class Painter:
    """Settings of the edits of a study."""

    model: Any = "tiny"  # source of the inpainter, or a live one
    num_inference_steps: int = 12
    guidance_scale: float | None = None  # None leaves it to the model
    seed: int = 0  # of the first edit; the others follow

    @classmethod
    def of(cls, options: argparse.Namespace) -> Painter:
        """The settings that the command line names."""
        return cls(options.model, options.num_inference_steps, options.guidance_scale, options.seed)

    def __str__(self) -> str:
        guidance = "of the model" if self.guidance_scale is None else f"{self.guidance_scale:g}"
        return f"seed {self.seed}, {self.num_inference_steps} steps, guidance {guidance}"

    def transform(self, options: InpaintOptions | None = None, **settings: Any) -> DiffusionLocalInpaint:
        """The transform with these settings, and the given ones."""
        sampler = {"num_inference_steps": self.num_inference_steps, "guidance_scale": self.guidance_scale}
        return DiffusionLocalInpaint(self.model, options=options, device="cpu", **{**sampler, **settings})

    def paint(
        self,
        images: Sequence[MaskedImage],
        prompts: Sequence[str],
        options: InpaintOptions | None = None,
        *,
        controls: Sequence[Tensor] | None = None,
        first_seed: int | None = None,
    ) -> list[MaskedImage]:
        """Repaint each image under its mask, with one prompt (and control image) per image.

        The noise depends on ``first_seed`` (by default ``seed``) and the position in the list alone.
        """
        start = self.seed if first_seed is None else first_seed
        edits = self.transform(options).apply_batch(
            [one.image for one in images],
            [one.mask for one in images],
            prompts,
            controls=controls,
            seeds=[start + i for i in range(len(images))],
        )
        return [replace(one, image=torch.as_tensor(edit.image)) for one, edit in zip(images, edits, strict=True)]


def painted_lesions(data: StudyData, n: int, painter: Painter) -> tuple[list[MaskedImage], list[MaskedImage]]:
    """``n`` free places with a lesion painted into each, the findings of the data set in turn; and the same places before."""
    places = free_places(data, n, seed=painter.seed)
    words = data.finding_words
    prompts = [place.prompt_for(words[i % len(words)]) for i, place in enumerate(places)]
    painted = painter.paint(places, prompts)
    return [replace(one, finding=words[i % len(words)]) for i, one in enumerate(painted)], places


@torch.no_grad()
def through_vae(image: Tensor, mask: Tensor, model: Any = "tiny") -> Tensor:
    """An image (C, H, W) in 0 to 255 whose square around the mask (H, W) was encoded and decoded by the inpainter's autoencoder."""
    inpainter = shared_model(spec_of("inpainter", model), "cpu", load_inpainter)
    square = roi_around(mask, inpainter.size_px)
    decoded = inpainter.decode(inpainter.encode(crop(image.float() / 127.5 - 1, square, inpainter.size_px).expand(3, -1, -1)[None]))
    shown = decoded[0].clamp(-1, 1) if image.shape[0] == 3 else decoded.clamp(-1, 1).mean(1)
    return paste(image.float(), (shown + 1) * 127.5, square)
