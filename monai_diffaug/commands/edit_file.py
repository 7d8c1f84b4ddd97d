"""Edit one image file: outline, repaint, validate, and write on the grid of the input. The shell commands run this."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image as PillowImage

from monai_diffaug.edit.contrast import Contrast
from monai_diffaug.edit.options import InpaintOptions, Noise
from monai_diffaug.edit.record import record_key
from monai_diffaug.errors import ModelSourceError
from monai_diffaug.files.fidelity import change_outside, local_ssim
from monai_diffaug.files.image_file import write_picture
from monai_diffaug.files.picture import Picture, output_suffix
from monai_diffaug.files.picture_tensor import array_of, model_values, tensor_on_grid
from monai_diffaug.files.preview import draw_preview
from monai_diffaug.files.stop_signal import without_interruption
from monai_diffaug.files.whole_file import content_hash, whole_file
from monai_diffaug.geometry.slices import slice_plane, to_slices
from monai_diffaug.masks.label_file import write_label
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.medsam import load_medsam
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.models.validator import load_validator

__all__ = ["EditResult", "EditSettings", "edit_picture", "load_model", "outline", "preview_of", "slice_size", "write_edit"]

LOADERS: Mapping[str, Any] = {"inpainter": load_inpainter, "medsam": load_medsam, "validator": load_validator}


@dataclass(frozen=True)
class EditSettings:
    """Prompt, models, options and device of an edit, with the names of ``DiffusionLocalInpaintd`` and ``Noise``."""

    prompt: str
    model: str = "tiny"
    medsam: str = "tiny"
    window: tuple[float, float] | None = None
    plane: str = "axial"
    num_inference_steps: int = 12
    guidance_scale: float | None = None
    strength: float = 1.0
    noise_rho: float = 0.0
    min_contrast: float = 0.0
    label_value: int = 1
    validate: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class EditResult:
    """One edit and its figures.

    Attributes:
        values: (C, H, W[, D]) in the image's unit.
        label: (1, ...) with the edit painted in; None without a label.
        mask: (1, ...) uint8, the region of the edit.
        record: the transform's record.
        local_ssim: inside the mask, 1 means unchanged; NaN where it is undefined.
        changed_outside: voxels that changed although the soft mask is 0 there.
        changed_beside: voxels that changed outside the given mask, under its soft edge.
        seconds: wall time of inpainting and validation.
    """

    values: NDArray[Any]
    label: NDArray[Any] | None
    mask: NDArray[np.uint8]
    record: dict[str, str | int | float | bool]
    local_ssim: float
    changed_outside: int
    changed_beside: int
    seconds: float


def load_model(kind: str, source: str, device: str = "cpu") -> None:
    """Load a model into the table that the transforms use, so that unusable files are named before the work begins.

    Raises:
        ModelSourceError: the source cannot be loaded.
    """
    try:
        shared_model(spec_of(kind, source), device, LOADERS[kind])
    except ValueError as error:  # files that cannot be read, or do not fit each other
        raise ModelSourceError(f"{kind} {source!r} cannot be loaded: {error}") from error


def slice_size(image: Picture, plane: str) -> tuple[int, int]:
    """(rows, columns) of one slice of the image in a plane."""
    empty = torch.empty((1, *image.shape), device="meta")
    height, width = to_slices(empty, slice_plane(image.affine, plane, len(image.shape))).shape[-2:]
    return int(height), int(width)


def outline(
    image: Picture, settings: EditSettings, *, label: NDArray[Any] | None = None, label_value: int | None = None, box: Any = None
) -> NDArray[np.uint8]:
    """MedSAM's mask (1, H, W[, D]) of the object in a box, or in the bounding boxes of the label, without jitter."""
    from monai_diffaug.transforms.medsam_mask import MedSAMMask

    masker = MedSAMMask(
        settings.medsam,
        box,
        label_value=label_value,
        jitter_px=0,
        plane=settings.plane,
        window=settings.window,
        device=settings.device,
    )
    region = None if label is None else tensor_on_grid(label, image)
    mask = masker.apply(tensor_on_grid(model_values(image), image), region, seed=0)
    outlined: NDArray[np.uint8] = (array_of(mask) != 0).astype(np.uint8)
    return outlined


def edit_picture(
    image: Picture, mask: NDArray[np.uint8], settings: EditSettings, *, seed: int, label: NDArray[Any] | None = None
) -> EditResult:
    """Repaint the inside of a mask; the same seed gives the same result.

    Args:
        image: the input; it is not changed.
        mask: (1, H, W[, D]), non-zero means repaint.
        settings: prompt, models and options.
        seed: uint32.
        label: (1, H, W[, D]) class ids, or None.
    """
    from monai_diffaug.transforms.latent_validated import LatentValidated
    from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd

    inpaint = DiffusionLocalInpaintd(
        "image",
        label_key=None if label is None else "label",
        label_value=settings.label_value,
        keep_original=settings.validate,
        model=settings.model,
        window=settings.window,
        plane=settings.plane,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        strength=settings.strength,
        options=InpaintOptions(noise=Noise(rho=settings.noise_rho), contrast=Contrast(min_contrast=settings.min_contrast)),
        device=settings.device,
    )
    before = model_values(image)
    sample: dict[Any, Any] = {"image": tensor_on_grid(before, image), "mask": tensor_on_grid(mask, image), "prompt": settings.prompt}
    if label is not None:
        sample["label"] = tensor_on_grid(label, image)
    start = time.perf_counter()
    sample = inpaint.edit(sample, seed=seed)
    if settings.validate:
        judge = LatentValidated(
            "image",
            label_key=None if label is None else "label",
            label_value=settings.label_value,
            on_reject="flag",
            window=settings.window,
            plane=settings.plane,
            device=settings.device,
        )
        judge.set_random_state(seed)
        sample = judge(sample)
    seconds = time.perf_counter() - start
    values = array_of(sample["image"])
    soft = inpaint.inpaint.soft_region(tensor_on_grid(before, image), tensor_on_grid(mask, image)).numpy()
    return EditResult(
        values=values,
        label=None if label is None else array_of(sample["label"]),
        mask=mask,
        record=dict(sample[record_key("image")]),
        local_ssim=local_ssim(before, values, mask) if before.max() > before.min() else float("nan"),
        changed_outside=change_outside(before, values, soft),
        changed_beside=change_outside(before, values, mask),
        seconds=seconds,
    )


def preview_of(image: Picture, result: EditResult, settings: EditSettings) -> PillowImage:
    """The picture of an edit, for a volume in three planes; the caption gives the prompt and the contrast."""
    record = result.record
    return draw_preview(
        model_values(image),
        result.values,
        mask=result.mask,
        affine=image.affine,
        plane=None,
        window=settings.window,
        caption=f"{settings.prompt}   contrast {record['contrast']:.3g}, {record['size_mm']:.3g} {'px' if image.affine is None else 'mm'}",
    )


def write_edit(
    folder: Path,
    name: str,
    image: Picture,
    result: EditResult,
    details: dict[str, Any],
    label_like: Picture | None = None,
    preview: PillowImage | None = None,
) -> list[Path]:
    """Write image, mask, label (if any) and the JSON record, which holds the hash of each; they appear whole and together or not at all.

    Args:
        folder: made when missing.
        name: stem of the files.
        image: the original, whose grid and stored type are kept.
        result: what ``edit_picture`` returned.
        details: settings and provenance for the JSON.
        label_like: the label file whose grid and type the new label takes.
        preview: a picture of the edit, written as NAME_preview.png.
    """
    folder.mkdir(parents=True, exist_ok=True)
    suffix = output_suffix(image.path)
    mask = result.mask * np.uint8(255 if image.affine is None else 1)
    writers: dict[Path, Callable[[Path], None]] = {
        folder / f"{name}{suffix}": partial(write_picture, result.values, image),
        folder / f"{name}_mask{suffix}": partial(write_picture, mask, image, dtype=np.uint8),
    }
    if result.label is not None and label_like is not None:
        writers[folder / f"{name}_label{output_suffix(label_like.path)}"] = partial(write_label, result.label, label_like)
    elif result.label is not None:
        writers[folder / f"{name}_label{suffix}"] = partial(write_picture, result.label, image, dtype=np.uint8)
    if preview is not None:
        writers[folder / f"{name}_preview.png"] = partial(preview.save, format="PNG")
    figures: dict[str, float] = {"changed_outside": result.changed_outside, "changed_under_soft_edge": result.changed_beside}
    figures["seconds"] = round(result.seconds, 3)
    if np.isfinite(result.local_ssim):
        figures["local_ssim"] = round(result.local_ssim, 4)
    record = folder / f"{name}.json"
    # the stack ends in reverse order: no file gets its name before all are complete, and the record gets its name last
    with contextlib.ExitStack() as stack:
        record_part = stack.enter_context(whole_file(record))
        hashes = {}
        for path, write in writers.items():
            part = stack.enter_context(whole_file(path))
            write(part)
            hashes[path.name] = content_hash(part)
        text = json.dumps({"record": result.record, "figures": figures, **details, "files": [*hashes], "sha256": hashes}, indent=2)
        record_part.write_text(text + "\n", encoding="utf-8")
        with without_interruption():  # image and record get their names together
            stack.pop_all().close()
    return [*writers, record]


def settings_as_json(settings: EditSettings) -> dict[str, Any]:
    """The settings as a dictionary for JSON."""
    return asdict(settings)
