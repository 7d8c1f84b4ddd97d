"""``monai-diffaug augment``: edit one image inside a mask, a label or a box."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
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
    size_mm,
    steps,
    strength,
    window,
)
from monai_diffaug.files.whole_file import content_hash, locked_folder

HARDLY_VISIBLE_CNR = 0.5  # contrast-to-noise ratio below which the command warns


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
    where = augment.add_mutually_exclusive_group()
    where.add_argument("--label", type=Path, metavar="FILE", help="MedSAM outlines its bounding boxes; the edit is painted into it")
    where.add_argument("--mask", type=Path, metavar="FILE", help="region to repaint: non-zero voxels")
    where.add_argument(
        "--box",
        type=box,
        metavar="X0,Y0,X1,Y1",
        help="MedSAM outlines its content; pixels from the left and the top of the picture, or of every slice in the radiological view",
    )
    augment.add_argument(
        "--shape",
        choices=("ellipse",),
        help="fill --box with an ellipse (a new lesion); in a volume --box X0,Y0,X1,Y1,Z0,Z1 names slices too",
    )
    augment.add_argument(
        "--place",
        metavar="ORGAN",
        help="place a lesion at random: tissue, or a class id or name of the --label; its outline follows the words round, oval, "
        "irregular, spiculated and lobulated of the prompt",
    )
    augment.add_argument(
        "--size-mm", type=size_mm, metavar="MM[,MM]", help="longest diameter of a placed lesion, or smallest and largest (pictures: pixels)"
    )
    augment.add_argument(
        "--classes", type=Path, metavar="FILE", help="JSON with the names of the label's classes; default dataset.json near it"
    )
    augment.add_argument(
        "--erase",
        action="store_true",
        help="repaint the lesions of --label (those of --label-value, else all) as normal tissue and clear them in the label; the "
        "validator judges, three tries; --modality and --anatomy word the prompt",
    )
    augment.add_argument("--prompt", metavar="TEXT", help='used as it is, e.g. "MRI of brain, glioma, irregular"')
    augment.add_argument(
        "--finding", metavar="TEXT", help='in place of --prompt: a finding of the vocabulary, e.g. "liver metastasis" or "glioma, round"'
    )
    augment.add_argument("--modality", metavar="NAME", help="of --finding, where its name does not decide")
    augment.add_argument("--anatomy", metavar="NAME", help="of --finding, where its name does not decide")
    augment.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    augment.add_argument("--model", default="tiny", metavar="SOURCE", help="tiny, a diffusers folder or org/name@revision")
    augment.add_argument("--medsam", default="tiny", metavar="SOURCE", help="tiny, a .pth file, a folder or org/name@revision")
    augment.add_argument("--window", type=window, metavar="LO,HI", help="intensity range that the models see, e.g. --window=-160,240")
    augment.add_argument("--plane", default="axial", metavar="PLANE", help=f"{', '.join(PLANES)}; default axial")
    augment.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the first result, default 0; each further one adds 1")
    augment.add_argument("--n", type=positive, default=1, metavar="K", help="number of results, default 1")
    augment.add_argument("--num-inference-steps", type=steps, default=12, metavar="N", help="steps of the sampler, default 12")
    augment.add_argument(
        "--guidance-scale", type=finite, metavar="G", help="classifier-free guidance; 1 switches it off; default by the model"
    )
    augment.add_argument("--strength", type=strength, default=1.0, metavar="S", help="in (0, 1]; default 1 starts from pure noise")
    augment.add_argument(
        "--noise-rho", type=correlation, default=0.0, metavar="R", help="correlation of the noise of neighbouring slices, 0 (default) to 1"
    )
    augment.add_argument(
        "--label-value",
        type=int,
        metavar="V",
        help="class id that is outlined and painted; needed for a label of several classes",
    )
    augment.add_argument(
        "--min-contrast",
        type=finite,
        default=0.0,
        metavar="C",
        help="leave the image unchanged if the lesion's contrast is less (image's unit)",
    )
    augment.add_argument("--preview", action="store_true", help="write NAME_preview.png too: before, mask, after, difference")
    augment.add_argument("--yes", action="store_true", help="repaint more than a tenth of the image without a question")
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
    if options.min_contrast < 0:
        raise WrongInputError(f"--min-contrast must be >= 0, got {options.min_contrast:g}")

    from monai_diffaug.commands.edit_file import EditSettings, edit_picture, load_model, preview_of, settings_as_json, write_edit
    from monai_diffaug.commands.edit_region import check_share, prompt_of, region_of
    from monai_diffaug.commands.erase_file import erase_picture, erase_prompt, erase_region
    from monai_diffaug.files.image_file import read_picture
    from monai_diffaug.models.sources import check_model_source
    from monai_diffaug.models.validator_acceptance import modality_in, strictness_of

    prompt = erase_prompt(options) if options.erase else prompt_of(options)
    image = read_picture(options.image)
    image_sha256 = content_hash(options.image)
    _check_places(options, image_sha256)
    region = erase_region(options, image) if options.erase else region_of(options, image)
    sources = {"inpainter": options.model}
    if region.uses_medsam:
        sources["medsam"] = options.medsam
    if options.validate or options.erase:
        sources["validator"] = "tiny"
    for kind, source in sources.items():
        check_model_source(kind, source)

    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    for kind, source in sources.items():
        load_model(kind, source, device)
    logger = logging.getLogger(__name__)
    modality = modality_in(prompt) if options.validate else None
    for note in (region.note, strictness_of(modality) if modality else ""):
        if note:
            logger.warning(note)

    settings = EditSettings(
        prompt=prompt,
        model=options.model,
        medsam=options.medsam,
        window=options.window,
        plane=options.plane,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        strength=options.strength,
        noise_rho=options.noise_rho,
        min_contrast=options.min_contrast,
        label_value=region.label_value,
        validate=options.validate,
        device=device,
    )
    masks = [region.mask_of(options.seed + k, settings) for k in range(options.n if options.place else 1)]
    for mask in masks:
        check_share(mask, is_allowed=options.yes)

    from tqdm import tqdm

    for k, name in enumerate(tqdm(_names(options), desc="augment", disable=not shows_progress(options))):
        current = options.seed + k
        mask = masks[k % len(masks)]
        if options.erase and region.label is not None:
            result = erase_picture(image, mask, settings, seed=current, label=region.label, label_value=options.label_value)
        else:
            result = edit_picture(image, mask, settings, seed=current, label=region.label)
        details = _details(options, settings_as_json(settings), current, image_sha256)
        preview = preview_of(image, result, settings) if options.preview else None
        options.out.mkdir(parents=True, exist_ok=True)
        with locked_folder(options.out):  # files of two commands never mix; another one may have written since the check
            _check_places(options, image_sha256, [name])
            written = write_edit(options.out, name, image, result, details, region.label_file, preview)
        _tell(name, result.record, prompt, has_lesion=not options.erase)
        if not options.quiet:
            print(written[0])
    return 0


def _tell(name: str, record: Mapping[str, Any], prompt: str, *, has_lesion: bool) -> None:
    """Warn of a result that is not what the prompt says."""
    from monai_diffaug.edit.contrast import Contrast, LesionContrast

    logger = logging.getLogger(__name__)
    if not record["applied"]:
        logger.warning("%s: left unchanged, %s", name, record["reason"])
        return
    if not record["accepted"]:
        logger.warning("%s: written, but the validator rejects it: %s", name, record["reason"])
    hardly = Contrast(min_cnr=HARDLY_VISIBLE_CNR, follow_words=True).refusal(LesionContrast(record["contrast"], record["cnr"]), prompt)
    if hardly and has_lesion:
        logger.warning("%s: written, but %s; try another --seed, or set --min-contrast", name, hardly)


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
        "place": options.place,
        "settings": settings,
        "seed": seed,
        "monai_diffaug": __version__,
    }
