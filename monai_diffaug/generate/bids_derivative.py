"""A BIDS derivative of the synthetic images: ``desc-synthetic`` files with sidecars that name the sources.

Format: https://bids-specification.readthedocs.io/en/stable/derivatives/introduction.html (BIDS 1.10). BIDS has no suffix for CT,
ultrasound, x-ray, endoscopy or fundus images. Such files are named alike and listed in ``.bidsignore``.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from monai_diffaug.files.picture import suffix_of
from monai_diffaug.generate.export_cases import Case, CaseTable, ExportError
from monai_diffaug.generate.export_folder import EXPORT_FILE, write_json
from monai_diffaug.generate.export_images import VOLUME, blank_label, read_channels, write_nifti_array, write_nifti_ids
from monai_diffaug.generate.export_labels import ClassTable, read_label
from monai_diffaug.generate.run_folder import Run
from monai_diffaug.version import __version__

__all__ = ["BIDS_VERSION", "write_bids"]

BIDS_VERSION = "1.10.0"
DESCRIPTION = "synthetic"
MRI_SUFFIXES = ("T1w", "T2w", "PDw", "T2starw", "FLAIR", "inplaneT1", "inplaneT2", "PDT2", "angio", "T1map", "T2map", "MTRmap")
OUTSIDE_BIDS = {
    "ct": "ct",
    "ultrasound": "us",
    "x-ray": "xray",
    "endoscopy": "endoscopy",
    "fundus": "fundus",
}
MRI = "mri"


def write_bids(table: CaseTable, classes: ClassTable, folder: Path, *, run: Run, suffix: str = "") -> dict[str, int]:
    """Write the synthetic cases into an empty folder; pictures become volumes of one slice.

    Args:
        table: the cases; a subject is a group of the datalist.
        classes: names of the classes, for the table of the labels.
        folder: of the derivative.
        run: where the cases come from.
        suffix: contrast of MRI as BIDS names it, e.g. T2w. Required for MRI, which the datalist only calls MRI.

    Raises:
        ExportError: MRI without a suffix, an unknown suffix, or an unknown modality.
    """
    subjects: dict[str, list[Case]] = defaultdict(list)
    for case in table.synthetic:
        subjects[case.groups[0]].append(case)
    labels = _subject_labels(list(subjects))
    ignored: set[str] = set()
    for group, cases in subjects.items():
        place = folder / f"sub-{labels[group]}" / "anat"
        place.mkdir(parents=True)
        for number, case in enumerate(cases, 1):
            stem = f"sub-{labels[group]}_run-{number}_desc-{DESCRIPTION}"
            image_suffix, is_bids = _suffix_of_image(case, table.datalist, suffix)
            ignored |= set() if is_bids else {f"*_{image_suffix}.nii.gz", f"*_{image_suffix}.json"}
            _write_case(case, table, place / stem, image_suffix)
    write_json(folder / "dataset_description.json", _dataset_description(table, run))
    rows = [f"{old}\t{classes.names[new]}" for old, new in sorted(classes.new_id.items())]
    (folder / f"desc-{DESCRIPTION}_dseg.tsv").write_text("\n".join(["index\tname", *rows]) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(README.format(cases=len(table.synthetic), version=__version__), encoding="utf-8")
    (folder / ".bidsignore").write_text("\n".join([EXPORT_FILE, *sorted(ignored)]) + "\n", encoding="utf-8")
    return {"subjects": len(subjects)}


README = """# Synthetic images

{cases} images in which monai_diffaug {version} repainted a region of a real image by a diffusion model. None of them shows a patient as
the patient was. `desc-synthetic_mask` marks the repainted region, `desc-synthetic_dseg` holds class ids (see `desc-synthetic_dseg.tsv`).

The sidecar of an image names its sources (`Sources`), the groups that these are in (`SourceGroups`) and the folds of a cross-validation in
which the image may be used for training (`TrainingFolds`). Use it in no other fold.
"""


def _write_case(case: Case, table: CaseTable, stem: Path, image_suffix: str) -> None:
    image, label, mask = (stem.with_name(f"{stem.name}_{suffix}{VOLUME}") for suffix in (image_suffix, "dseg", "mask"))
    if suffix_of(case.images[0]) == VOLUME:
        shutil.copyfile(case.images[0], image)
    else:
        write_nifti_array(read_channels(case.images), image)
    write_nifti_ids(*(blank_label(case.images) if case.label is None else read_label(case.label)), label)
    sources = [f"bids:source:{quote(source)}" for source in case.sources]
    record = case.result
    folds = [k for k, split in enumerate(table.splits) if case.name in split.training]
    about: dict[str, Any] = {
        "Description": f"Region of a real image repainted by a diffusion model ({record.kind})",
        "Sources": sources,
        "SpatialReference": "orig",
    }
    write_json(
        image.with_name(image.name.replace(VOLUME, ".json")),
        about
        | {
            "SkullStripped": False,
            "SyntheticData": "YES",
            "SourceGroups": list(case.groups),
            "TrainingFolds": folds,
            "Prompt": record.prompt,
            "Seed": record.seed,
            "Job": record.job,
            "Model": record.model,
            "ModelSHA256": record.model_sha256,
        },
    )
    write_json(label.with_name(label.name.replace(VOLUME, ".json")), about | {"Description": "Class ids, with the edit painted in"})
    if case.mask is not None:
        ids, like = read_label(case.mask)
        write_nifti_ids((ids > 0).astype(np.int64), like, mask)
        write_json(mask.with_name(mask.name.replace(VOLUME, ".json")), about | {"Description": "Repainted region", "Type": "ROI"})


def _suffix_of_image(case: Case, datalist: Mapping[str, Any], suffix: str) -> tuple[str, bool]:
    """Suffix of an image and whether BIDS has it."""
    top = datalist.get("modality")
    top = next(iter(top.values()), "") if isinstance(top, Mapping) else top
    modality = str(case.words.get("modality") or top or "").lower()
    if modality.startswith(MRI) or modality in ("mr", *(name.lower() for name in MRI_SUFFIXES)):
        if suffix not in MRI_SUFFIXES:
            problem = f"{suffix!r} is none" if suffix else "the datalist only says MRI"
            raise ExportError(f"BIDS names the contrast of an MRI ({', '.join(MRI_SUFFIXES)}); {problem}: give it, e.g. --suffix T2w")
        return suffix, True
    if modality not in OUTSIDE_BIDS:
        raise ExportError(f"{case.name} is of modality {modality!r}; use MRI or one of {', '.join(OUTSIDE_BIDS)} in the datalist")
    return OUTSIDE_BIDS[modality], False


def _subject_labels(groups: list[str]) -> dict[str, str]:
    """Subject labels have letters and digits only; two groups never share one."""
    labels: dict[str, str] = {}
    for group in groups:
        label = re.sub(r"[^A-Za-z0-9]", "", group) or "case"
        number = 2
        while label in labels.values():
            label = f"{re.sub(r'[^A-Za-z0-9]', '', group) or 'case'}x{number}"
            number += 1
        labels[group] = label
    return labels


def _dataset_description(table: CaseTable, run: Run) -> dict[str, Any]:
    source = table.datalist_path.absolute().parent.as_uri()
    return {
        "Name": "Synthetic images of monai_diffaug",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": str(table.datalist.get("licence") or table.datalist.get("license") or "that of the source images"),
        "Authors": ["monai_diffaug"],
        "GeneratedBy": [
            {
                "Name": "monai_diffaug",
                "Version": str(run.settings.get("package_version", __version__)),
                "Description": f"monai-diffaug generate, spec {run.settings.get('spec_sha256', '')}, seed {run.settings.get('seed', '')}",
            }
        ],
        "SourceDatasets": [{"URL": source}],
        "DatasetLinks": {"source": source},
    }
