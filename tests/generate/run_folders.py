"""Run folders for the tests: drawings as sources, and results as `monai-diffaug generate` writes them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from monai_diffaug.generate.job_record import JobRecord
from monai_diffaug.generate.jobs import job_name
from monai_diffaug.generate.run_folder import INDEX_FILE, RECORD_FILE, RESULTS_FOLDER, RUN_FILE

AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(array: np.ndarray, path: Path) -> None:
    """(H, W) or (H, W, 3) uint8 as PNG; (H, W, D[, C]) as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        nib.save(nib.Nifti1Image(array, AFFINE), path)
    else:
        Image.fromarray(array).save(path)


def drawing(seed: int, shape: tuple[int, ...], at: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Speckle with a dark square, and the square."""
    rng = np.random.RandomState(seed)
    image = rng.randint(90, 200, shape)
    label = np.zeros(shape[:3] if len(shape) > 2 and shape[2] != 3 else shape[:2], np.uint8)
    label[at : at + 10, at : at + 12] = 1
    image[label > 0] //= 3
    return image.astype(np.uint8 if len(shape) == 2 or shape[-1] == 3 else np.int16), label


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj) if path.name.endswith(".nii.gz") else np.array(Image.open(path))


@dataclass
class Maker:
    """Writes sources, then results.

    `shape`: (H, W) pictures, (H, W, 3) colour, (H, W, D) volumes.
    """

    folder: Path
    shape: tuple[int, ...] = (48, 40)
    ids: dict[str, int] = field(default_factory=lambda: {"lesion": 1})
    value: int = 1
    entries: list[dict[str, Any]] = field(default_factory=list)
    records: list[JobRecord] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def datalist(self) -> Path:
        return self.folder / "datalist.json"

    @property
    def suffix(self) -> str:
        return ".nii.gz" if len(self.shape) > 2 and self.shape[-1] != 3 else ".png"

    def source(self, name: str, **words: Any) -> str:
        """Write a source; returns its id."""
        image, label = drawing(len(self.entries), self.shape)
        paths = {"image": f"images/{name}{self.suffix}", "label": f"labels/{name}{self.suffix}"}
        save(image, self.folder / paths["image"])
        save(label * self.value, self.folder / paths["label"])
        finding = {str(value): word for word, value in self.ids.items()}
        self.entries.append({**paths, "finding": finding, "modality": "ultrasound", "anatomy": "breast", **words})
        return str(words.get("id", paths["image"]))

    def result(self, source: str, copy: int = 0, donor: str | None = None, **values: Any) -> JobRecord:
        """Write an accepted result with a second square, or the record of a filtered one."""
        entry = next(entry for entry in self.entries if entry.get("id", entry["image"]) == source)
        job = job_name(source, entry["image"], copy)
        place = self.run / RESULTS_FOLDER / job
        place.mkdir(parents=True)
        filtered = values.get("state") == "filtered"
        files, hashes = {}, {}
        if not filtered:
            image, label = (load(self.folder / entry[role]) for role in ("image", "label"))
            mask = np.zeros_like(label)
            mask[30 : 30 + 6 + copy, 20:28] = 1
            values_new, _ = drawing(1000 + copy + len(self.records), self.shape)
            image = np.where(mask[..., None] > 0 if image.ndim > mask.ndim else mask > 0, values_new // 2, image).astype(image.dtype)
            if values.get("kind") != "control":
                label = np.where(mask > 0, self.value, label).astype(np.uint8)
            for role, array in (("image", image), ("label", label), ("mask", mask)):
                files[role] = f"{role}{self.suffix}"
                save(array, place / files[role])
                hashes[role] = sha256(place / files[role])
        donor_entry = next((e for e in self.entries if e.get("id", e["image"]) == donor), {})
        figures = {"seconds": 1.5 + copy, "local_ssim": 0.3 + 0.1 * copy, "lesion_area_mm2": 48.0 + 8 * copy}
        record = JobRecord(
            **{
                "job": job,
                "source_id": source,
                "copy": copy,
                "seed": 7 + copy,
                "state": "accepted",
                "kind": "lesion",
                "files": files,
                "sha256": hashes,
                "source": {
                    "image": entry["image"],
                    "label": entry["label"],
                    "image_sha256": sha256(self.folder / entry["image"]),
                    "group": str(entry.get("group", source)),
                    "fold": entry.get("fold"),
                },
                "donor": {"id": donor, "group": str(donor_entry.get("group", donor))} if donor else None,
                "prompt": "ultrasound of breast, lesion",
                "finding": next(word for word, value in self.ids.items() if value == self.value),
                "label_value": 0 if values.get("kind") == "control" else self.value,
                "edit": {"applied": True, "accepted": not filtered, "score": 0.9 - 0.1 * copy, "tries": 1 + copy},
                "figures": figures,
                "package_version": "0.1.0",
                "model": "tiny",
                **values,
            }
        )
        (place / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
        self.records.append(record)
        return record

    def finish(self) -> Path:
        """Write the datalist, `run.json` and the index; returns the run folder."""
        self.datalist.write_text(json.dumps({"training": self.entries, **self.more}), encoding="utf-8")
        self.run.mkdir(exist_ok=True)
        settings = {
            "format": 1,
            "spec": {"copies": 2},
            "spec_sha256": "0" * 64,
            "seed": 0,
            "package_version": "0.1.0",
            "datalist": str(self.datalist),
            "sources": {},
        }
        (self.run / RUN_FILE).write_text(json.dumps(settings), encoding="utf-8")
        lines = [record.to_json() for record in sorted(self.records, key=lambda record: record.job)]
        (self.run / INDEX_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return self.run


def small_run(folder: Path, **options: Any) -> Maker:
    """Four sources of three patients, six accepted results (one with a donor, one control), one filtered."""
    maker = Maker(folder, **options)
    sources = [maker.source(name, group=group) for name, group in (("a1", "A"), ("a2", "A"), ("b", "B"), ("c", "C"))]
    for source in sources:
        maker.result(source)
    maker.result(sources[0], 1, donor=sources[2])
    maker.result(sources[2], 1, kind="control", finding="")
    maker.result(sources[3], 1, state="filtered", reason="score 0.31 < 0.5")
    maker.finish()
    return maker
