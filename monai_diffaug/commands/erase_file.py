"""``augment --erase``: repaint the lesions of a label file as normal tissue, and clear them in the label."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.commands.arguments import WrongInputError
from monai_diffaug.commands.edit_file import EditResult, EditSettings
from monai_diffaug.commands.edit_region import EditRegion
from monai_diffaug.edit.options import InpaintOptions, Noise
from monai_diffaug.files.fidelity import change_outside, local_ssim
from monai_diffaug.files.image_file import read_picture
from monai_diffaug.files.picture import Picture, require_same_grid
from monai_diffaug.files.picture_tensor import array_of, model_values, tensor_on_grid
from monai_diffaug.masks.label_file import ids_of_file
from monai_diffaug.presets.preset_keys import normal_prompt
from monai_diffaug.prompts import NORMAL
from monai_diffaug.transforms.erase_lesion import EraseLesion
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

__all__ = ["erase_picture", "erase_prompt", "erase_region"]


def erase_prompt(options: argparse.Namespace) -> str:
    """--prompt, or "normal tissue" with the words of --modality and --anatomy.

    Raises:
        WrongInputError: --finding, or one of the two words alone, or an unknown modality.
    """
    if options.finding:
        raise WrongInputError("--erase paints normal tissue: give --modality and --anatomy, or --prompt, in place of --finding")
    if options.prompt is not None:
        if not options.prompt.strip():
            raise WrongInputError("--prompt is empty; describe the tissue, or leave it out")
        return str(options.prompt)
    if not options.modality and not options.anatomy:
        return NORMAL
    if not (options.modality and options.anatomy):
        raise WrongInputError("--erase needs --modality and --anatomy together, e.g. --modality ultrasound --anatomy breast, or neither")
    try:
        return normal_prompt(options.modality, options.anatomy)
    except ValueError as error:
        raise WrongInputError(f"--modality: {error}") from error


def erase_region(options: argparse.Namespace, image: Picture) -> EditRegion:
    """The lesions of --label (those of --label-value, else all above 0) and their margin.

    Raises:
        WrongInputError: no --label, an option that does not fit, or a label without such voxels.
        GridMismatchError: the label is on another grid.
        ImageFileError: a file that cannot be read.
    """
    other = next((name for name in ("mask", "box", "place", "shape", "size_mm") if getattr(options, name, None)), None)
    if options.label is None or other:
        name = f"--{other.replace('_', '-')}" if other else ""
        raise WrongInputError(f"--erase erases the lesions of --label FILE{f', not allowed with {name}' if other else ': give it'}")
    label_file = read_picture(options.label, layers=True)
    require_same_grid(image, label_file, "label")
    if label_file.stored.shape[0] > 1:
        raise WrongInputError(f"label {label_file.path} has {label_file.stored.shape[0]} channels or layers; give one class id per voxel")
    ids = ids_of_file(label_file)
    chosen = ids > 0 if options.label_value is None else ids == options.label_value
    if not chosen.any():
        what = "voxels above 0" if options.label_value is None else f"voxels of value {options.label_value}"
        raise WrongInputError(f"label {label_file.path} is empty: it has no {what}")

    def mask_of(seed: int, settings: EditSettings) -> NDArray[np.uint8]:
        region: NDArray[np.uint8] = array_of(_eraser(settings, ids, options.label_value).region(tensor_on_grid(ids, image)))
        return region

    return EditRegion(mask_of, False, ids, label_file, label_value=0)


def erase_picture(
    image: Picture, mask: NDArray[np.uint8], settings: EditSettings, *, seed: int, label: NDArray[Any], label_value: int | None
) -> EditResult:
    """Erase the lesions of a label; the same seed gives the same result. If none of three candidates is accepted nothing is changed.

    Args:
        image: the input; it is not changed.
        mask: (1, H, W[, D]), the region of ``erase_region``.
        settings: prompt, models and options.
        seed: uint32.
        label: (1, H, W[, D]) class ids.
        label_value: class id that is erased; None erases all above 0.
    """
    before, start = model_values(image), time.perf_counter()
    eraser = _eraser(settings, label, label_value)
    edit = eraser.apply(tensor_on_grid(before, image), tensor_on_grid(label, image), seed=seed)
    seconds = time.perf_counter() - start
    values = array_of(edit.image)
    soft = eraser.erase.inpaint.inpaint.soft_region(tensor_on_grid(before, image), tensor_on_grid(mask, image)).numpy()
    return EditResult(
        values=values,
        label=array_of(edit.label),
        mask=mask,
        record=dict(edit.record),
        local_ssim=local_ssim(before, values, mask) if before.max() > before.min() else float("nan"),
        changed_outside=change_outside(before, values, soft),
        changed_beside=change_outside(before, values, mask),
        seconds=seconds,
    )


def _eraser(settings: EditSettings, label: NDArray[Any], label_value: int | None) -> EraseLesion:
    """With --label-value the other classes count as organs: they keep their label, and the margin may lie on them."""
    places: dict[str, Any] = {"window": settings.window, "plane": settings.plane, "device": settings.device}
    inpaint = DiffusionLocalInpaint(
        settings.model,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        strength=settings.strength,
        options=InpaintOptions(noise=Noise(rho=1.0)),  # slices that continue each other, whatever --noise-rho
        **places,
    )
    others = [] if label_value is None else [int(each) for each in np.unique(label) if each > 0 and each != label_value]
    return EraseLesion(
        settings.prompt,
        label_values=None if label_value is None else [label_value],
        keep_values=others,
        validator=LatentValidate(**places),
        model=inpaint,
    )
