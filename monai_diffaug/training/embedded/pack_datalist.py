"""Turn the ``.npz`` packs of real data into PNG files and one MONAI datalist, which every recipe and every study reads.

``python -m monai_diffaug.training.embedded.pack_datalist --packs DIR --out DIR``

The datalist has a "training" and a "validation" list. A fifth of the groups of each class is for validation; near-duplicate images have
one group, and the split is the same on every machine. A third list, "volumes", holds the CT and MRI volumes of the folder ``volumes``, for
studies of slice-to-slice continuity; no model is trained on them.

``brain_mri_boxes.npz`` has boxes and no labels. The embedded MedSAM outlines its tumours; the trusted ones are for training only (see
``boxed_slices``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.files.whole_file import whole_file
from monai_diffaug.prompts import NORMAL
from monai_diffaug.training.embedded.boxed_slices import BOXED_PACK, boxed_rows

__all__ = ["PACKS", "VOLUMES", "Pack", "datalist_rows", "pack_datalist", "volume_rows"]

SPLIT_SEED = 20250101
VALIDATION_FRACTION = 0.2
HEALTHY = ("no finding",)  # classes of whole images that show nothing
COMPRESS_LEVEL = 1  # PNG is lossless at every level; this one is fast
VOLUMES = "volumes"

Rows = dict[str, list[dict[str, Any]]]
"""Entries of a datalist by list."""


@dataclass(frozen=True)
class Pack:
    """One ``.npz`` file and the words for its images and labels.

    Attributes:
        name: of the file, and of the data set.
        modality, anatomy: words of the captions.
        findings: "finding" of the entries: label values -> word. Empty where the pack has classes of whole images instead of labels.
    """

    name: str
    modality: str
    anatomy: str
    findings: dict[str, str] = field(default_factory=dict)


PACKS: tuple[Pack, ...] = (
    Pack("breast_ultrasound", "ultrasound", "breast", {"1": "benign mass", "2": "malignant mass"}),
    Pack("colonoscopy_polyp", "endoscopy", "colon", {"1": "polyp"}),
    Pack(
        "endoscopy_disease",
        "endoscopy",
        "gastrointestinal tract",
        {"1": "Barrett's oesophagus", "2": "cancer", "3": "high-grade dysplasia", "4": "polyp", "5": "suspicious lesion"},
    ),
    Pack("fundus_disc_cup", "fundus", "retina", {"1,2": "optic disc", "2": "optic cup"}),
    Pack("chest_xray", "x-ray", "chest"),
    Pack("brain_ct_haemorrhage", "ct", "brain", {"1": "intracranial haemorrhage"}),
    Pack(
        "brain_ct_haemorrhage_types",
        "ct",
        "brain",
        {
            "1": "epidural haematoma",
            "2": "intraparenchymal haemorrhage",
            "3": "intraventricular haemorrhage",
            "4": "subarachnoid haemorrhage",
            "5": "subdural haematoma",
        },
    ),
    Pack("brain_ct_stroke", "ct", "brain", {"1": "haemorrhagic stroke", "2": "ischaemic stroke"}),
    Pack("brain_mri_tumour", "mri", "brain", {"1": "meningioma", "2": "glioma", "3": "pituitary tumour"}),
    Pack("prostate_mri", "mri", "prostate", {"1": "prostate"}),
    Pack("spleen_ct", "ct", "abdomen", {"1": "spleen"}),
    Pack("spine_mri", "mri", "spine", {"1": "vertebra", "2": "disc or spinal canal"}),
)
# "plane" and "window" say how a study of continuity slices a volume and which intensities the model sees
VOLUME_ROWS: tuple[dict[str, Any], ...] = (
    {
        "image": "volumes/body_ct_3mm.nii.gz",
        "label": "volumes/body_ct_3mm_organs.nii.gz",
        "finding": {"1": "spleen"},
        "modality": "ct",
        "anatomy": "abdomen",
        "dataset": "body_ct",
        "plane": "axial",
        "window": [-160.0, 240.0],
    },
    {
        "image": "volumes/spine_t2.nii.gz",
        "label": "volumes/spine_t2_cord.nii.gz",
        "finding": {"1": "disc or spinal canal"},
        "modality": "mri",
        "anatomy": "spine",
        "dataset": "spine_t2",
        "plane": "sagittal",
    },
)
NAMES = (*(pack.name for pack in PACKS), BOXED_PACK, VOLUMES)
SIMILAR_TO_BOXED = ("brain_mri_tumour",)  # packs that may show a slice of the boxed pack


def _validation_groups(groups: NDArray[np.int64], classes: NDArray[np.int64]) -> set[int]:
    """Groups of the validation list: of each class a fifth, drawn with a fixed seed."""
    rng = np.random.RandomState(SPLIT_SEED)
    class_of = {int(g): int(classes[groups == g].max()) for g in np.unique(groups)}
    chosen: set[int] = set()
    for each in sorted(set(class_of.values())):
        members = sorted(g for g, c in class_of.items() if c == each)
        count = max(1, round(VALIDATION_FRACTION * len(members)))
        chosen.update(int(g) for g in rng.permutation(members)[:count])
    return chosen


def datalist_rows(packs: Path, name: str, out: Path) -> Rows:
    """Write the images and labels of one pack as PNG; returns its entries.

    An entry has "image", "label", "finding", "modality", "anatomy", "dataset", "group" (one for near-duplicates) and "index", the number of
    the image in its pack. Images without a finding are "normal tissue". Where the pack has no labels, "label" is null, and "finding" is
    the class of the whole image.

    Args:
        packs: folder of the ``.npz`` files.
        name: of a pack in ``PACKS``.
        out: folder of the datalist; the pictures go to ``out / name``.

    Raises:
        FileNotFoundError: the folder has no such pack.
    """
    pack = next(p for p in PACKS if p.name == name)
    file = packs / f"{name}.npz"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; --packs must be the folder of the .npz files")
    with np.load(file) as archive:
        images = archive["images"]
        words = [str(word) for word in archive["classes"]]
        image_class = archive["image_class"].astype(np.int64) if "image_class" in archive else None
        labels = archive["labels"] if "labels" in archive else None
        groups = archive["groups"].astype(np.int64) if "groups" in archive else np.arange(len(images))
    classes = labels.reshape(len(labels), -1).max(1).astype(np.int64) if labels is not None else image_class
    if classes is None:
        raise ValueError(f"{file} has neither labels nor image_class")
    validation = _validation_groups(groups, classes)
    (out / name).mkdir(parents=True, exist_ok=True)
    rows: Rows = {"training": [], "validation": []}
    for i, (image, group) in enumerate(zip(images, groups.tolist(), strict=True)):
        label: str | None = None
        finding: Any = NORMAL
        if labels is not None:
            label = _save(labels[i], out, f"{name}/{i:04d}_label.png")
            finding = pack.findings if labels[i].any() else NORMAL
        elif words[classes[i]] not in HEALTHY:
            finding = words[classes[i]]
        row = {"image": _save(image, out, f"{name}/{i:04d}.png"), "label": label, "finding": finding}
        row |= {"modality": pack.modality, "anatomy": pack.anatomy, "dataset": name, "group": str(group), "index": i}
        rows["validation" if group in validation else "training"].append(row)
    return rows


def _save(pixels: NDArray[np.uint8], out: Path, name: str) -> str:
    from PIL import Image

    Image.fromarray(pixels).save(out / name, compress_level=COMPRESS_LEVEL)
    return name


def volume_rows(packs: Path, out: Path) -> Rows:
    """Copy the volumes of ``VOLUME_ROWS`` from ``packs / "volumes"``; returns their entries as the list "volumes".

    Raises:
        FileNotFoundError: a volume is not in the folder.
    """
    (out / VOLUMES).mkdir(parents=True, exist_ok=True)
    for row in VOLUME_ROWS:
        for role in ("image", "label"):
            shutil.copyfile(packs / row[role], out / row[role])
    return {VOLUMES: list(VOLUME_ROWS)}


def pack_datalist(packs: Path, out: Path, only: Collection[str] = NAMES) -> Path:
    """Write ``out / "datalist.json"`` and the files that it names; returns its path.

    Args:
        packs: folder of the ``.npz`` files.
        out: folder to write, made where needed.
        only: data sets, of ``PACKS``, "brain_mri_boxes" and "volumes".

    Raises:
        ValueError: an unknown data set.
        FileNotFoundError: a pack or a volume is not in ``packs``.
    """
    unknown = sorted(set(only) - set(NAMES))
    if unknown:
        raise ValueError(f"no data set {unknown[0]!r}; the data sets are {', '.join(NAMES)}")
    out.mkdir(parents=True, exist_ok=True)
    rows: Rows = {"training": [], "validation": []}
    for name in NAMES:
        if name in only:
            for section, entries in _rows_of(packs, name, out).items():
                rows.setdefault(section, []).extend(entries)
    file = out / "datalist.json"
    with whole_file(file) as part:
        part.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return file


def _rows_of(packs: Path, name: str, out: Path) -> Rows:
    if name == VOLUMES:
        return volume_rows(packs, out)
    if name == BOXED_PACK:
        return boxed_rows(packs, out, [packs / f"{other}.npz" for other in SIMILAR_TO_BOXED if (packs / f"{other}.npz").is_file()])
    return datalist_rows(packs, name, out)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=Path, required=True, metavar="DIR", help="folder of the .npz files")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the datalist")
    parser.add_argument("--only", nargs="+", default=NAMES, metavar="NAME", help=f"some of {', '.join(NAMES)}; default all")
    options = parser.parse_args(arguments)
    try:
        file = pack_datalist(options.packs, options.out, options.only)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    counts = {section: len(rows) for section, rows in json.loads(file.read_text(encoding="utf-8")).items()}
    sys.stdout.write(f"{file}: {', '.join(f'{count} {section}' for section, count in counts.items())}\n")


if __name__ == "__main__":
    main()
