"""Where ``augment`` edits: mask, label, box, ellipse or a placed lesion, with class ids by name; and the prompt of a finding."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffaug.commands.arguments import WrongInputError
from monai_diffaug.commands.edit_file import EditSettings, outline, slice_size
from monai_diffaug.files.image_file import read_picture
from monai_diffaug.files.picture import Picture, require_same_grid
from monai_diffaug.files.picture_tensor import array_of, model_values, tensor_on_grid
from monai_diffaug.geometry.slices import from_slices, slice_plane, to_slices
from monai_diffaug.masks.label_file import ids_of_file, require_storable
from monai_diffaug.prompts import VOCABULARIES, compose_prompt, vocabulary_of
from monai_diffaug.transforms.place_mask import PlaceMask
from monai_diffaug.transforms.text_prompt import TextPrompt

__all__ = ["EditRegion", "check_share", "prompt_of", "region_of"]

TISSUE = "tissue"
LARGEST_SHARE = 0.1  # of the image that is repainted without --yes
VOLUME_SIZE_MM = (8.0, 25.0)  # of lesions that are placed in volumes without --size-mm
MOST_CLASSES = 20  # that a message lists
SIDECARS = ("dataset.json", "datalist.json", "classes.json")


@dataclass(frozen=True)
class EditRegion:
    """Where an image is edited.

    Attributes:
        mask_of: seed of a result -> mask (1, H, W[, D]) uint8. Only a placed lesion depends on the seed.
        uses_medsam: the mask needs MedSAM.
        label: class ids (1, H, W[, D]) into which the edit is painted; None without a label.
        label_file: its file.
        label_value: class id that is painted.
        note: said to the user before the work begins; mostly empty.
    """

    mask_of: Callable[[int, EditSettings], NDArray[np.uint8]]
    uses_medsam: bool = False
    label: NDArray[np.int64] | None = None
    label_file: Picture | None = None
    label_value: int = 1
    note: str = ""


def region_of(options: argparse.Namespace, image: Picture) -> EditRegion:
    """The region that the options --mask, --label, --box, --shape and --place describe.

    Raises:
        WrongInputError: an empty or unclear region, e.g. a label of several classes without --label-value.
        GridMismatchError: mask or label on another grid.
        ImageFileError: a file that cannot be read, or a label that cannot hold the class id.
    """
    if not (options.mask or options.label or options.box or options.place):
        raise WrongInputError("one of the arguments --label --mask --box --place is required")
    if options.place and (options.mask or options.box):
        raise WrongInputError(
            "--place chooses the place itself: not allowed with --mask or --box; --label may name an organ map or lesions"
        )
    if options.shape and not options.box:
        raise WrongInputError("--shape ellipse fills a box: give --box X0,Y0,X1,Y1")
    if options.size_mm and not options.place:
        raise WrongInputError("--size-mm is the size of a placed lesion: give --place tissue, or --place ORGAN with --label")
    if options.mask:
        mask = _mask_of_file(options.mask, image)
        return EditRegion(lambda seed, settings: mask)
    if options.box:
        return _box_region(options, image)
    return _place_region(options, image) if options.place else _label_region(options, image)


def check_share(mask: NDArray[np.uint8], *, is_allowed: bool) -> None:
    """Raise WrongInputError if a mask covers more than a tenth of the image without --yes."""
    share = float((mask != 0).mean())
    if share > LARGEST_SHARE and not is_allowed:
        raise WrongInputError(
            f"{share:.0%} of the image would be repainted; for a label choose a class by --label-value, for a new lesion use --place; "
            f"--yes repaints more than {LARGEST_SHARE:.0%} all the same"
        )


def prompt_of(options: argparse.Namespace) -> str:
    """The text of --prompt, or that of --finding with its modality and anatomy.

    Raises:
        WrongInputError: neither or both, an empty text, or a finding whose modality or anatomy is not clear.
    """
    if (options.prompt is None) == (options.finding is None):
        raise WrongInputError('say what to paint by --prompt "CT of abdomen, liver metastasis" or by --finding "liver metastasis"')
    if options.finding is None:
        if options.modality or options.anatomy:
            raise WrongInputError("--modality and --anatomy belong to --finding; a --prompt is used as it is")
        if not options.prompt.strip():
            raise WrongInputError("--prompt is empty; describe what to paint")
        return str(options.prompt)
    finding, _, attributes = (part.strip() for part in options.finding.partition(","))
    modalities = [name for name, table in VOCABULARIES.items() if any(finding in listed for listed in table.findings.values())]
    if options.modality is None and len(modalities) != 1:
        known = f"is listed for {' and '.join(modalities)}" if modalities else "is not in the vocabulary (monai-diffaug info --vocabulary)"
        raise WrongInputError(f"finding {finding!r} {known}; add --modality" + ("" if modalities else " and --anatomy"))
    try:
        modality = vocabulary_of(options.modality or modalities[0]).modality
        text = TextPrompt(options.modality or modalities[0], anatomy=options.anatomy, finding=finding, attributes=())
    except ValueError as error:
        raise WrongInputError(str(error).replace("anatomy='...'", "--anatomy").replace("vocabulary=Vocabulary(...)", "--prompt")) from error
    anatomies = [place for place, _ in text.pairs]
    if len(anatomies) > 1:
        raise WrongInputError(f"finding {finding!r} is listed for {' and '.join(anatomies)}; add --anatomy")
    return compose_prompt(modality, anatomies[0], finding, [attributes])


def _mask_of_file(path: Path, image: Picture) -> NDArray[np.uint8]:
    region = read_picture(path, layers=True)
    require_same_grid(image, region, "mask")
    # a colour picture of a mask, or a segmentation with layers, counts where any channel is set
    chosen = (region.stored * region.slope + region.inter != 0).any(axis=0, keepdims=True)
    if not chosen.any():
        raise WrongInputError(f"mask {region.path} is empty: it has no non-zero voxels")
    mask: NDArray[np.uint8] = chosen.astype(np.uint8)
    return mask


def _read_label(options: argparse.Namespace, image: Picture) -> tuple[Picture, NDArray[np.int64]]:
    label = read_picture(options.label, layers=True)
    require_same_grid(image, label, "label")
    if label.stored.shape[0] > 1:
        raise WrongInputError(f"label {label.path} has {label.stored.shape[0]} channels or layers; give one class id per voxel")
    return label, ids_of_file(label)


def _label_region(options: argparse.Namespace, image: Picture) -> EditRegion:
    label, ids = _read_label(options, image)
    counts = _counts(ids)
    value = options.label_value
    if value is not None and value not in counts:
        raise WrongInputError(f"label {label.path} is empty: it has no voxels of value {value}; it has {_listed(counts, options)}")
    if not counts:
        raise WrongInputError(f"label {label.path} is empty: it has no voxels above 0")
    if value is None and len(counts) > 1:
        raise WrongInputError(
            f"label {label.path} has {len(counts)} classes: {_listed(counts, options)}; choose the one to repaint by --label-value"
        )
    painted = next(iter(counts)) if value is None else value
    require_storable(painted, label)

    def mask_of(seed: int, settings: EditSettings) -> NDArray[np.uint8]:
        return _trusted(outline(image, settings, label=ids, label_value=painted), "--label", "give another box, or the mask by --mask")

    return EditRegion(mask_of, True, ids, label, painted)


def _box_region(options: argparse.Namespace, image: Picture) -> EditRegion:
    height, width = slice_size(image, options.plane)
    x0, y0, x1, y1, *depth = options.box
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        raise WrongInputError(f"box {x0:g},{y0:g},{x1:g},{y1:g} is outside the image: X runs 0 to {width}, Y 0 to {height}")
    if options.shape:
        mask = _ellipse(image, options.plane, (x0, y0, x1, y1), depth)
        return EditRegion(lambda seed, settings: mask)
    if depth:
        raise WrongInputError("a box of six numbers is for --shape ellipse in a volume; MedSAM takes X0,Y0,X1,Y1")
    advice = "for a new lesion in normal tissue use --shape ellipse or --place tissue; otherwise give another box, or the mask by --mask"

    def mask_of(seed: int, settings: EditSettings) -> NDArray[np.uint8]:
        return _trusted(outline(image, settings, box=(x0, y0, x1, y1)), "--box", advice)

    return EditRegion(mask_of, True)


def _ellipse(image: Picture, plane: str, box_xyxy: tuple[float, ...], depth: list[float]) -> NDArray[np.uint8]:
    """The ellipse in a box of a picture, or the ellipsoid in a box of a volume, from the slices' left, top and first slice."""
    spatial = slice_plane(image.affine, plane, len(image.shape))
    stack = to_slices(torch.zeros(1, *image.shape), spatial)
    if (spatial is None) == bool(depth):
        raise WrongInputError(
            f"an ellipse in a volume needs a box of six numbers, X0,Y0,X1,Y1,Z0,Z1, with slices Z0 to Z1 of 0 to {len(stack)}"
            if spatial is not None
            else "a picture has no slices: give --box X0,Y0,X1,Y1"
        )
    z0, z1 = depth or (0.0, 1.0)
    if z0 < 0 or z1 > len(stack):
        raise WrongInputError(f"slices {z0:g} to {z1:g} of --box are outside the volume: it has slices 0 to {len(stack)}")
    x0, y0, x1, y1 = box_xyxy
    ends = ((z0, z1), (y0, y1), (x0, x1))
    shape = (len(stack), *stack.shape[-2:])
    offsets = [(np.arange(n) + 0.5 - (a + b) / 2) / ((b - a) / 2) for n, (a, b) in zip(shape, ends, strict=True)]
    inside = sum(np.square(np.expand_dims(each, [i for i in range(3) if i != axis])) for axis, each in enumerate(offsets)) <= 1
    if not np.any(inside):
        raise WrongInputError(
            f"the ellipse of --box {','.join(f'{each:g}' for each in (*box_xyxy, *depth))} holds no pixel; make it larger"
        )
    mask: NDArray[np.uint8] = from_slices(torch.from_numpy(np.asarray(inside))[:, None], spatial).numpy().astype(np.uint8)
    return mask


def _place_region(options: argparse.Namespace, image: Picture) -> EditRegion:
    """A lesion at a random place of tissue or of an organ; the prompt's words shape its outline."""
    size_mm = options.size_mm or (VOLUME_SIZE_MM if len(image.shape) == 3 else None)
    place = PlaceMask(size_mm=size_mm, plane=options.plane)
    label_file, ids, organ, value, note = None, None, None, 1, ""
    if options.label:
        label_file, ids = _read_label(options, image)
    if options.place == TISSUE:
        counts = {} if ids is None else _counts(ids)
        if len(counts) > 1 and options.label_value is None:
            raise WrongInputError(
                f"label {options.label} has {len(counts)} classes: {_listed(counts, options)}; name that of the new lesion by "
                "--label-value, or an organ that takes it by --place"
            )
        value = options.label_value or next(iter(counts), 1)
    elif ids is None:
        raise WrongInputError(f"--place {options.place} needs the organ map by --label; --place tissue does without")
    else:
        organ = _class_id(options, ids)
        value = int(ids.max()) + 1 if options.label_value is None else options.label_value
        if options.label_value is None:
            note = f"the new lesion is class {value} in the label, one more than the largest; --label-value gives it another"
    if label_file is not None:
        require_storable(value, label_file)
    region = None if organ is None or ids is None else tensor_on_grid((ids == organ).astype(np.uint8), image)
    avoided = None if ids is None or organ is not None else tensor_on_grid(ids, image)
    values = tensor_on_grid(model_values(image), image)

    def mask_of(seed: int, settings: EditSettings) -> NDArray[np.uint8]:
        mask = array_of(place.apply(values, region, avoided, prompt=settings.prompt, seed=seed))
        if not mask.any():
            size = "of this size" if size_mm is None else f"of {size_mm[0]:g} mm"
            raise WrongInputError(f"no place for a lesion {size} was found in {options.place}; give a smaller --size-mm or another --seed")
        placed: NDArray[np.uint8] = mask.astype(np.uint8)
        return placed

    return EditRegion(mask_of, False, ids, label_file, value, note)


def _trusted(mask: NDArray[np.uint8], source: str, advice: str) -> NDArray[np.uint8]:
    if not mask.any():
        raise WrongInputError(f"MedSAM finds nothing it trusts (predicted IoU >= 0.5) in the boxes of {source}; {advice}")
    return mask


def _counts(ids: NDArray[np.int64]) -> dict[int, int]:
    """Class id above 0 -> number of voxels."""
    values, counts = np.unique(ids[ids > 0], return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _listed(counts: Mapping[int, int], options: argparse.Namespace) -> str:
    names = {value: name for name, value in _class_names(options).items()}
    parts = [f"{value}{f' {names[value]}' if value in names else ''} ({count} voxels)" for value, count in counts.items()]
    return ", ".join(parts[:MOST_CLASSES]) + (f" and {len(parts) - MOST_CLASSES} more" if len(parts) > MOST_CLASSES else "") or "none"


def _class_id(options: argparse.Namespace, ids: NDArray[np.int64]) -> int:
    """Class id of the organ of --place."""
    counts = _counts(ids)
    if options.place.lstrip("-").isdigit():
        value = int(options.place)
    else:
        names = {name.lower(): value for name, value in _class_names(options).items()}
        if options.place.lower() not in names:
            source = f"the names are {', '.join(names)}" if names else f"no {' or '.join(SIDECARS)} next to the label names its classes"
            raise WrongInputError(
                f"--place {options.place}: {source}. Give a class id of the label, {_listed(counts, options)}, "
                "or names by --classes FILE.json"
            )
        value = names[options.place.lower()]
    if value not in counts:
        raise WrongInputError(f"--place {options.place}: the label has no voxels of class {value}; it has {_listed(counts, options)}")
    return value


def _class_names(options: argparse.Namespace) -> dict[str, int]:
    """Name -> class id, from --classes or from a file next to the label that names them; empty without one."""
    if options.classes is not None:
        if not options.classes.is_file():
            raise WrongInputError(f"--classes {options.classes}: no such file")
        names = _names_in(options.classes)
        if not names:
            raise WrongInputError(f'--classes {options.classes} names no classes: write {{"labels": {{"1": "liver"}}}} or {{"liver": 1}}')
        return names
    folders = [] if options.label is None else [options.label.absolute().parent, options.label.absolute().parent.parent]
    return next((names for folder in folders for name in SIDECARS if (names := _names_in(folder / name))), {})


def _names_in(path: Path) -> dict[str, int]:
    """The names of classes in a dataset.json ({"1": "liver"} or {"liver": 1} under "labels", "finding" or at the top)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    tables = [content.get("labels"), content.get("finding"), content] if isinstance(content, dict) else []
    for table in (each for each in tables if isinstance(each, dict)):
        names: dict[str, int] = {}
        for key, value in table.items():
            pair: Any = (value, key) if isinstance(value, str) and key.isdigit() else (key, value)
            if isinstance(pair[0], str) and str(pair[1]).isdigit():
                names[pair[0]] = int(pair[1])
        if names:
            return {name: value for name, value in names.items() if value > 0}
    return {}
