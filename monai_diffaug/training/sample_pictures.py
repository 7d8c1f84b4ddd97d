"""The sample pictures of a training run: results on a few slices, drawn the same way each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from monai_diffaug.edit.options import ControlNet, InpaintOptions, SemanticController
from monai_diffaug.files.preview import draw_preview, save_preview
from monai_diffaug.prompts import compose_prompt
from monai_diffaug.training.labelled_slices import LabelledSlice

__all__ = ["draw_inpainted", "draw_masks", "draw_reconstructions", "evenly", "lesions_to_show"]

CASES = 4
MODEL_WINDOW = (-1.0, 1.0)


def lesions_to_show(held_out: Sequence[LabelledSlice], slices: Sequence[LabelledSlice]) -> list[LabelledSlice]:
    """The held-out lesions; where none is held out, those that are trained on."""
    return [s for s in held_out if s.has_lesion] or [s for s in slices if s.has_lesion]


def evenly(slices: Sequence[LabelledSlice], count: int = CASES) -> list[LabelledSlice]:
    """At most ``count`` of the slices, evenly spread: the same ones each time."""
    picks = (np.arange(min(count, len(slices))) * len(slices) / max(min(count, len(slices)), 1)).astype(int)
    return [slices[i] for i in picks]


def prompt_of(chosen: LabelledSlice) -> str:
    """The plainest caption of a slice."""
    return chosen.prompt or compose_prompt(chosen.modality, chosen.anatomy, chosen.finding)


def draw_inpainted(
    model: Any,
    slices: Sequence[LabelledSlice],
    file: Path,
    *,
    seed: int,
    control: ControlNet | SemanticController | None = None,
) -> None:
    """One row per case: original, mask, the lesion repainted from noise, difference.

    Args:
        model: inpainter.
        slices: with one lesion each.
        file: PNG to write.
        seed: of the first case.
        control: network that steers the inpainter; None is the plain model.
    """
    from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

    inpaint = DiffusionLocalInpaint(model, window=MODEL_WINDOW, options=InpaintOptions(control=control), device=str(model.device))
    shown = evenly(slices)
    texts = [prompt_of(chosen) for chosen in shown]
    masks = [torch.from_numpy(chosen.lesion[None].astype(np.uint8)) for chosen in shown]
    seeds = [(seed + index) % 2**32 for index in range(len(shown))]
    edits = inpaint.apply_batch([chosen.image for chosen in shown], masks, texts, seeds=seeds)
    rows = [
        _row(chosen.image, torch.as_tensor(edit.image), mask, text)
        for chosen, edit, mask, text in zip(shown, edits, masks, texts, strict=True)
    ]
    _stack(rows, file)


@torch.no_grad()
def draw_reconstructions(vae: Any, slices: Sequence[LabelledSlice], file: Path) -> None:
    """One row per case: original, mask, the slice encoded and decoded, difference.

    Args:
        vae: diffusers AutoencoderKL.
        slices: with or without a lesion.
        file: PNG to write.
    """
    multiple = 2 ** (len(vae.config.block_out_channels) - 1)
    rows = []
    for chosen in evenly(slices):
        height, width = (n // multiple * multiple for n in chosen.image.shape[-2:])
        image = chosen.image[:, :height, :width].expand(3, -1, -1)
        decoded = vae.decode(vae.encode(image[None].to(vae.device)).latent_dist.mode()).sample[0].clamp(-1, 1).cpu()
        mask = torch.from_numpy(chosen.lesion[None, :height, :width].astype(np.uint8))
        rows.append(_row(image, decoded, mask, "result: encoded and decoded"))
    _stack(rows, file)


def draw_masks(slices: Sequence[LabelledSlice], predictions: Sequence[Tensor], file: Path, caption: str) -> None:
    """One row per case: image, true mask, the image with the predicted mask brightened, difference.

    Args:
        slices: with one lesion each.
        predictions: a mask (1, h, w) bool for each.
        file: PNG to write.
        caption: a line under each case.
    """
    rows = []
    for chosen, mask in zip(slices, predictions, strict=True):
        shown = torch.where(mask.cpu(), chosen.image * 0.5 + 0.5, chosen.image)
        rows.append(_row(chosen.image, shown, torch.from_numpy(chosen.lesion[None].astype(np.uint8)), caption))
    _stack(rows, file)


def _row(before: Tensor, after: Tensor, mask: Tensor, caption: str) -> Image.Image:
    return draw_preview(before.numpy(), after.numpy(), mask=mask.numpy(), window=MODEL_WINDOW, caption=caption)


def _stack(rows: Sequence[Image.Image], file: Path) -> None:
    canvas = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "black")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    save_preview(file, canvas)
