"""A raw data set of nnU-Net v2: real cases are listed by their paths, synthetic ones written, and the folds obey the leakage rule.

Format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md (nnU-Net 2.8)
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_diffaug.files.picture import NIFTI_SUFFIXES, suffix_of
from monai_diffaug.generate.export_cases import Case, CaseTable, ExportError
from monai_diffaug.generate.export_folder import write_json
from monai_diffaug.generate.export_images import PICTURE, VOLUME, Layout, blank_label, is_plain_png, layout_of, write_channels
from monai_diffaug.generate.export_labels import ClassTable, read_label, write_ids
from monai_diffaug.version import __version__

__all__ = ["SPLITS_FILE", "channel_names", "one_layout", "require_dataset_name", "splits_as_lists", "write_nnunet"]

NAME = re.compile(r"Dataset\d{3}_\w+")
SPLITS_FILE = "splits_final.json"
RGB = ("R", "G", "B")
CT = "CT"  # nnU-Net normalises channels of this name by the Hounsfield units of the whole data set
IMAGES, LABELS = "imagesTr", "labelsTr"


def require_dataset_name(out: Path) -> None:
    """Raise ExportError unless the folder is named as nnU-Net finds data sets."""
    if not NAME.fullmatch(out.name):
        raise ExportError(
            f"nnU-Net finds data sets by folders named DatasetNNN_Name; --out ends in {out.name!r}, use e.g. {out / 'Dataset501_DiffAug'}"
        )


def write_nnunet(table: CaseTable, classes: ClassTable, folder: Path, *, channels: Sequence[str] = ()) -> dict[str, int]:
    """Write the data set into an empty folder; returns how many real images and labels had to be written too.

    Real files are written only where nnU-Net would read something else than this package: JPEG, BMP, TIFF, DICOM, .mha, .nrrd, palettes,
    orientation tags, several channels in one NIfTI file, labels with scaled, mapped or lossy ids, and paths with a "$" that nnU-Net would
    expand.

    Args:
        table: the cases.
        classes: names and ids of the classes.
        folder: of the data set.
        channels: names of the channels; by default the modality, or R, G, B.

    Raises:
        ExportError: pictures and volumes, or images with different channels, in one data set.
    """
    layouts, ending, count = one_layout(table)
    names = channel_names(table, ending, count, channels)
    for name in (IMAGES, LABELS):
        (folder / name).mkdir()
    dataset: dict[str, Any] = {}
    written = {"real images written": 0, "real labels written": 0}
    for case in table.cases:
        listed = not case.is_synthetic and layouts[case.name].is_plain and all(_is_literal(path) for path in case.images)
        images = [str(path) for path in case.images] if listed else _write_images(case, layouts[case.name], folder)
        label = _write_label(case, classes, folder, ending)
        dataset[case.name] = {"images": images, "label": label}
        if not case.is_synthetic:
            written["real images written"] += not listed
            written["real labels written"] += label.startswith(LABELS)
    content: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(names)},
        "labels": {name: index for index, name in enumerate(classes.names)},
        "numTraining": len(dataset),
        "file_ending": ending,
        "dataset": dataset,
        "description": f"{len(table.real)} real cases and {len(table.synthetic)} synthetic cases of monai_diffaug {__version__}",
        "synthetic": [case.name for case in table.synthetic],
    }
    if not classes.is_identity:
        content["class_ids_before"] = {classes.names[new]: old for old, new in classes.new_id.items()}
    write_json(folder / "dataset.json", content)
    write_json(folder / SPLITS_FILE, splits_as_lists(table))
    return written


def splits_as_lists(table: CaseTable) -> list[dict[str, list[str]]]:
    """The folds as nnU-Net's ``splits_final.json`` stores them."""
    return [{"train": list(split.training), "val": list(split.validation)} for split in table.splits]


def one_layout(table: CaseTable) -> tuple[dict[str, Layout], str, int]:
    """Layout of each case, and the ending and number of channels that all share.

    Raises:
        ExportError: they differ.
    """
    layouts = {case.name: layout_of(case.images) for case in table.cases}
    kinds = Counter((layout.ending, layout.channels) for layout in layouts.values())
    if len(kinds) > 1:
        examples = [next(name for name, layout in layouts.items() if (layout.ending, layout.channels) == kind) for kind in kinds]
        texts = [
            f"{kinds[kind]} {'pictures' if kind[0] == PICTURE else 'volumes'} with {kind[1]} channel(s), e.g. {example}"
            for kind, example in zip(kinds, examples, strict=True)
        ]
        raise ExportError(f"a data set needs one kind of image; there are {'; '.join(texts)}; export one kind, by a datalist of its own")
    ending, count = next(iter(kinds))
    return layouts, ending, count


def channel_names(table: CaseTable, ending: str, count: int, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the channels: the given ones, R, G, B of pictures, or the modality in the datalist.

    Volumes of CT are "CT", which nnU-Net normalises by Hounsfield units. A CT slice as a picture has none, so it is not named so.

    Raises:
        ExportError: another number of names than channels.
    """
    if names:
        if len(names) != count:
            raise ExportError(f"{len(names)} channel name(s), {', '.join(names)}, for images with {count} channel(s)")
        return tuple(names)
    if ending == PICTURE and count == len(RGB):
        return RGB
    top = table.datalist.get("modality")
    if isinstance(top, dict) and len(top) == count:
        return tuple(str(name) for name in top.values())
    modalities = {str(case.words.get("modality") or top or "image") for case in table.real}
    modality = modalities.pop() if len(modalities) == 1 else "image"
    if modality.lower() == "ct":
        modality = CT if ending == VOLUME else "windowed CT"
    return (modality,) if count == 1 else tuple(f"{modality} {index}" for index in range(count))


def _is_literal(path: Path) -> bool:
    """nnU-Net expands environment variables in listed paths."""
    return os.path.expandvars(str(path)) == str(path)


def _write_images(case: Case, layout: Layout, folder: Path) -> list[str]:
    stem = folder / IMAGES / case.name
    if layout.is_plain and all(suffix_of(path) == layout.ending for path in case.images):
        paths = []
        for number, source in enumerate(case.images):
            paths.append(stem.with_name(f"{stem.name}_{number:04}{layout.ending}"))
            shutil.copyfile(source, paths[-1])
    else:
        paths = write_channels(case.images, layout, stem)
    return [path.relative_to(folder).as_posix() for path in paths]


def _write_label(case: Case, classes: ClassTable, folder: Path, ending: str) -> str:
    """Path of the label in the table: the file itself where nnU-Net reads the right ids from it, else a new file."""
    target = folder / LABELS / f"{case.name}{ending}"
    relative = target.relative_to(folder).as_posix()
    if case.label is None:
        write_ids(*blank_label(case.images), target)
        return relative
    ids, picture = read_label(case.label)
    suffix = suffix_of(case.label)
    plain = classes.is_identity and _reads_alike(case.label, suffix, ending) and picture.slope == 1.0 and picture.inter == 0.0
    plain = plain and picture.stored.shape[0] == 1
    if not plain:
        write_ids(classes.apply(ids), picture, target)
        return relative
    if not case.is_synthetic and _is_literal(case.label):
        return str(case.label)
    if suffix == ending:
        shutil.copyfile(case.label, target)
    else:
        write_ids(ids, picture, target)
    return relative


def _reads_alike(path: Path, suffix: str, ending: str) -> bool:
    return is_plain_png(path) if suffix == PICTURE == ending else suffix in NIFTI_SUFFIXES and ending == VOLUME
