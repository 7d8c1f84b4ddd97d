"""A folder as of the Medical Segmentation Decathlon: NIfTI files, ``dataset.json``, and the folds that the format itself lacks.

Format: http://medicaldecathlon.com and https://arxiv.org/abs/1902.09063
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_diffaug.files.picture import suffix_of
from monai_diffaug.generate.export_cases import TRAINING, CaseTable, ExportError
from monai_diffaug.generate.export_datalist import SYNTHETIC, write_datalists
from monai_diffaug.generate.export_folder import write_json
from monai_diffaug.generate.export_images import VOLUME, blank_label, read_channels, write_nifti_array, write_nifti_ids
from monai_diffaug.generate.export_labels import ClassTable, read_label
from monai_diffaug.generate.nnunet_raw import IMAGES, LABELS, SPLITS_FILE, channel_names, one_layout, splits_as_lists
from monai_diffaug.version import __version__

__all__ = ["require_task_name", "write_decathlon"]

NAME = re.compile(r"Task\d{2,3}_\w+")


def require_task_name(out: Path) -> None:
    """Raise ExportError unless the folder is named as a task of the Decathlon."""
    if not NAME.fullmatch(out.name):
        raise ExportError(f"a Decathlon folder is named TaskNN_Name; --out ends in {out.name!r}, use e.g. {out / 'Task501_DiffAug'}")


def write_decathlon(table: CaseTable, classes: ClassTable, folder: Path, *, name: str, channels: Sequence[str] = ()) -> dict[str, int]:
    """Write the task into an empty folder; pictures become volumes of one slice with pixels of 1 mm.

    "training" of ``dataset.json`` lists all cases, real and synthetic: the format has no folds. ``splits_final.json`` (nnU-Net) and
    ``fold_K.json`` (MONAI) hold the folds, in which a synthetic case is in training only where its source and donor are.

    Raises:
        ExportError: pictures and volumes, or images with different channels, in one data set.
    """
    _, ending, count = one_layout(table)
    names = channel_names(table, ending, count, channels)
    for place in (IMAGES, LABELS, "imagesTs"):
        (folder / place).mkdir()
    paths: dict[str, tuple[Any, Any]] = {}
    for case in table.cases:
        image, label = f"{IMAGES}/{case.name}{VOLUME}", f"{LABELS}/{case.name}{VOLUME}"
        if len(case.images) == 1 and suffix_of(case.images[0]) == VOLUME:
            shutil.copyfile(case.images[0], folder / image)
        else:
            write_nifti_array(read_channels(case.images), folder / image)
        ids, like = blank_label(case.images) if case.label is None else read_label(case.label)
        write_nifti_ids(classes.apply(ids), like, folder / label)
        paths[case.name] = (f"./{image}", f"./{label}")
    content = {
        "name": name.split("_", 1)[-1],
        "description": f"{len(table.real)} real cases and {len(table.synthetic)} synthetic cases of monai_diffaug {__version__}",
        "reference": "",
        "licence": "",
        "release": __version__,
        "tensorImageSize": "3D" if count == 1 else "4D",
        "modality": {str(index): name for index, name in enumerate(names)},
        "labels": {str(index): name for index, name in enumerate(classes.names)},
        "numTraining": len(table.cases),
        "numTest": 0,
        TRAINING: [{"image": image, "label": label} for image, label in paths.values()],
        "test": [],
        SYNTHETIC: [case.name for case in table.synthetic],
    }
    write_json(folder / "dataset.json", content)
    write_json(folder / SPLITS_FILE, splits_as_lists(table))
    write_datalists(table, folder, paths, single="")
    return {}
