"""``monai-diffaug augment``: edit one image inside a mask, a label or a box."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_diffaug.commands.arguments import (
    MAX_SEED,
    PLANES,
    WrongInputError,
    box,
    check_device,
    check_out,
    correlation,
    finite,
    positive,
    seed,
    shows_progress,
    steps,
    strength,
    window,
)
from monai_diffaug.files.whole_file import content_hash, locked_folder


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    augment = commands.add_parser(
        "augment",
        parents=[common],
        help="edit one image",
        description="Edit IMAGE inside a mask and write it on its own grid, with its type and header. "
        "JPEG results are written as PNG (JPEG would change voxels outside), a DICOM series as .nii.gz.",
    )
    augment.add_argument("image", type=Path, metavar="IMAGE", help=".nii[.gz], .mha, .nrrd, .png, .jpg or a DICOM folder")
    where = augment.add_mutually_exclusive_group(required=True)
    where.add_argument("--label", type=Path, metavar="FILE", help="MedSAM outlines its bounding boxes; the edit is painted into it")
    where.add_argument("--mask", type=Path, metavar="FILE", help="region to repaint: non-zero voxels")
    where.add_argument(
        "--box",
        type=box,
        metavar="X0,Y0,X1,Y1",
        help="MedSAM outlines its content; pixels from the left and the top of the picture, or of every slice in the radiological view",
    )
    augment.add_argument("--prompt", required=True, metavar="TEXT", help='e.g. "MRI of brain, glioma, irregular"')
    augment.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    augment.add_argument("--model", default="tiny", metavar="SOURCE", help="tiny, a diffusers folder or org/name@revision")
    augment.add_argument("--medsam", default="tiny", metavar="SOURCE", help="tiny, a .pth file, a folder or org/name@revision")
    augment.add_argument("--window", type=window, metavar="LO,HI", help="intensity range that the models see, e.g. --window=-160,240")
    augment.add_argument("--plane", default="axial", metavar="PLANE", help=f"{', '.join(PLANES)}; default axial")
    augment.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the first result, default 0; each further one adds 1")
    augment.add_argument("--n", type=positive, default=1, metavar="K", help="number of results, default 1")
    augment.add_argument("--num-inference-steps", type=steps, default=12, metavar="N", help="steps of the sampler, default 12")
    augment.add_argument(
        "--guidance-scale", type=finite, default=3.0, metavar="G", help="classifier-free guidance, default 3; 1 switches it off"
    )
    augment.add_argument("--strength", type=strength, default=1.0, metavar="S", help="in (0, 1]; default 1 starts from pure noise")
    augment.add_argument(
        "--noise-rho", type=correlation, default=0.0, metavar="R", help="correlation of the noise of neighbouring slices, 0 (default) to 1"
    )
    augment.add_argument(
        "--label-value",
        type=int,
        metavar="V",
        help="class id that is outlined and painted; by default all above 0 are outlined and 1 is painted",
    )
    augment.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1; default cuda if available")
    augment.add_argument("--overwrite", action="store_true", help="replace files in DIR that are no results of this image, too")
    augment.add_argument("--validate", action="store_true", help="score the result with the embedded validator")
    augment.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    check_out(options.out)
    if options.plane not in PLANES:
        raise WrongInputError(f"unknown plane {options.plane!r}; use {', '.join(PLANES)}")
    if options.seed + options.n - 1 > MAX_SEED:
        raise WrongInputError(f"--seed {options.seed} with --n {options.n} goes beyond {MAX_SEED}")
    if not options.prompt.strip():
        raise WrongInputError("--prompt is empty; describe what to paint")

    import numpy as np

    from monai_diffaug.commands.edit_file import (
        EditSettings,
        edit_picture,
        load_model,
        outline,
        settings_as_json,
        slice_size,
        write_edit,
    )
    from monai_diffaug.files.image_file import read_picture
    from monai_diffaug.files.picture import require_same_grid
    from monai_diffaug.masks.label_file import ids_of_file, require_storable
    from monai_diffaug.models.sources import check_model_source

    image = read_picture(options.image)
    image_sha256 = content_hash(options.image)
    _check_places(options, image_sha256)
    region = label = None
    if options.mask or options.label:
        role = "mask" if options.mask else "label"
        region = read_picture(options.mask or options.label, layers=True)
        require_same_grid(image, region, role)
        if options.label and region.stored.shape[0] > 1:
            raise WrongInputError(f"label {region.path} has {region.stored.shape[0]} channels or layers; give one class id per voxel")
        if options.mask:
            # a colour picture of a mask, or a segmentation with layers, counts where any channel is set
            chosen, condition = (region.stored * region.slope + region.inter != 0).any(axis=0, keepdims=True), "non-zero voxels"
        else:
            require_storable(1 if options.label_value is None else options.label_value, region)
            label = ids_of_file(region)
            chosen, condition = label > 0, "voxels above 0"
            if options.label_value is not None:
                chosen, condition = label == options.label_value, f"voxels of value {options.label_value}"
        if not chosen.any():
            raise WrongInputError(f"{role} {region.path} is empty: it has no {condition}")
    else:
        height, width = slice_size(image, options.plane)
        x0, y0, x1, y1 = options.box
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise WrongInputError(f"box {x0:g},{y0:g},{x1:g},{y1:g} is outside the image: X runs 0 to {width}, Y 0 to {height}")
    sources = {"inpainter": options.model}
    if not options.mask:
        sources["medsam"] = options.medsam
    if options.validate:
        sources["validator"] = "tiny"
    for kind, source in sources.items():
        check_model_source(kind, source)

    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    for kind, source in sources.items():
        load_model(kind, source, device)

    settings = EditSettings(
        prompt=options.prompt,
        model=options.model,
        medsam=options.medsam,
        window=options.window,
        plane=options.plane,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        strength=options.strength,
        noise_rho=options.noise_rho,
        label_value=1 if options.label_value is None else options.label_value,
        validate=options.validate,
        device=device,
    )
    if options.mask:
        mask = chosen.astype(np.uint8)
    else:
        mask = outline(image, settings, label=label, label_value=options.label_value, box=options.box)
        if not mask.any():
            source = "--label" if options.label else "--box"
            raise WrongInputError(
                f"MedSAM finds nothing it trusts (predicted IoU >= 0.5) in the boxes of {source}; give another box, or the mask by --mask"
            )

    from tqdm import tqdm

    for k, name in enumerate(tqdm(_names(options), desc="augment", disable=not shows_progress(options))):
        current = options.seed + k
        result = edit_picture(image, mask, settings, seed=current, label=label)
        details = _details(options, settings_as_json(settings), current, image_sha256)
        options.out.mkdir(parents=True, exist_ok=True)
        with locked_folder(options.out):  # files of two commands never mix; another one may have written since the check
            _check_places(options, image_sha256, [name])
            written = write_edit(options.out, name, image, result, details, region if options.label else None)
        if not result.record["applied"]:
            logging.getLogger(__name__).warning("%s: left unchanged, %s", name, result.record["reason"])
        elif not result.record["accepted"]:
            logging.getLogger(__name__).warning("%s: written, but the validator rejects it: %s", name, result.record["reason"])
        if not options.quiet:
            print(written[0])
    return 0


def _names(options: argparse.Namespace) -> list[str]:
    """Stems of the results."""
    from monai_diffaug.files.picture import stem_of

    stem = f"{stem_of(options.image)}_diffaug"
    return [f"{stem}_{k}" for k in range(options.n)] if options.n > 1 else [stem]


def _check_places(options: argparse.Namespace, image_sha256: str, names: Sequence[str] = ()) -> None:
    from monai_diffaug.commands.result_places import check_result_places

    others = [file for file in (options.label, options.mask) if file is not None]
    check_result_places(options.out, names or _names(options), options.image, image_sha256, others=others, overwrite=options.overwrite)


def _details(options: argparse.Namespace, settings: dict[str, Any], seed: int, image_sha256: str) -> dict[str, Any]:
    from monai_diffaug.version import __version__

    files = {name: str(getattr(options, name)) for name in ("image", "label", "mask") if getattr(options, name)}
    return {
        "input": {**files, "image_sha256": image_sha256},
        "box": options.box,
        "settings": settings,
        "seed": seed,
        "monai_diffaug": __version__,
    }
