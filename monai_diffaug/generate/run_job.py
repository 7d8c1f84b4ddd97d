"""Run one job: read the source, edit it with the job's seed, write the result as one folder that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import random
import secrets
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.utils import affine_to_spacing
from numpy.typing import NDArray

from monai_diffaug.errors import DroppedSampleError, GridMismatchError, one_line
from monai_diffaug.files.fidelity import local_ssim
from monai_diffaug.files.image_file import write_picture
from monai_diffaug.files.picture import Picture, output_suffix
from monai_diffaug.files.picture_tensor import array_of, model_values
from monai_diffaug.files.whole_file import content_hash
from monai_diffaug.generate.job_record import ACCEPTED, CONTROL, FILTERED, LESION, JobRecord
from monai_diffaug.generate.jobs import Job
from monai_diffaug.generate.pipeline import IMAGE, LABEL, build_pipelines, finding_of
from monai_diffaug.generate.run_folder import RECORD_FILE, RESULTS_FOLDER
from monai_diffaug.generate.source_images import LoadedSource, load_source, source_fields
from monai_diffaug.generate.spec import GenerateSpec
from monai_diffaug.masks.label_file import write_label
from monai_diffaug.prompts import NORMAL
from monai_diffaug.version import __version__

__all__ = ["FAILED", "JobOutcome", "JobRunner", "part_folders"]

FAILED = "failed"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
PART_MARK = ".part-"


@dataclass(frozen=True)
class JobOutcome:
    """How one job ended, in plain values.

    Attributes:
        job: its name.
        state: "accepted", "filtered" or "failed".
        error, traceback: of the last attempt of a failed job, else empty.
        attempts: number of attempts.
        disk_full: whether the failure is a full disk, which further jobs would meet too.
    """

    job: str
    state: str
    error: str = ""
    traceback: str = ""
    attempts: int = 1
    disk_full: bool = False


class JobRunner:
    """Runs the jobs of one run in this process; the models are loaded once.

    Args:
        spec: of the run, as ``GenerateSpec.to_plain`` gives it.
        folder: of the run, on a disk that all workers share.
        retries: further attempts of a job that raises.
        models: kind of a model -> {"source", "sha256"}, for the records.
    """

    def __init__(self, spec: Mapping[str, Any], folder: str, *, retries: int = 0, models: Mapping[str, Mapping[str, str]] | None = None):
        self.spec = GenerateSpec(**spec)
        self.results = Path(folder) / RESULTS_FOLDER
        self.retries = retries
        self.inpainter: Mapping[str, str] = (models or {}).get("inpainter", {})
        self.pipelines = build_pipelines(self.spec)

    def run(self, job: Job) -> JobOutcome:
        """Run a job to its end; a job that is finished already is not run again. No exception of the job leaves this function."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return JobOutcome(job.name, self._finished(job) or self._run(job), attempts=attempt)
            except Exception as raised:
                error = unwrapped(raised)
                disk_full = isinstance(error, OSError) and error.errno in DISK_FULL
                if attempt > self.retries or disk_full:
                    text = traceback.format_exc()
                    return JobOutcome(job.name, FAILED, f"{type(error).__name__}: {one_line(error)}", text, attempt, disk_full)

    def _finished(self, job: Job) -> str | None:
        """State of a job that another worker has finished, e.g. before a message got lost."""
        record = self.results / job.name / RECORD_FILE
        return JobRecord.from_json(record.read_bytes()).state if record.is_file() else None

    def _run(self, job: Job) -> str:
        source = load_source(job.source)
        chain = deepcopy(self.pipelines.by_kind[job.kind].chain)  # nothing of one job reaches the next
        chain.set_random_state(seed=job.seed)
        start = time.perf_counter()
        with fixed_numerics(self.spec.threads, job.seed):
            try:
                sample, dropped = chain(dict(source.sample)), ""
            except RuntimeError as error:
                if not isinstance(unwrapped(error), DroppedSampleError):
                    raise
                sample, dropped = {}, str(unwrapped(error))
        record, arrays = self._judge(job, source, sample, dropped, time.perf_counter() - start)
        with part_folder(self.results / job.name) as part:
            writers = self._writers(source, arrays)
            for name, write in writers.values():
                write(part / name)
                sync(part / name)
            files = {role: name for role, (name, _) in writers.items()}
            hashes = {role: content_hash(part / name) for role, name in files.items()}
            text = JobRecord(**record, files=files, sha256=hashes).to_json()
            (part / RECORD_FILE).write_text(text + "\n", encoding="utf-8")
            sync(part / RECORD_FILE)
        return str(record["state"])

    def _judge(
        self, job: Job, source: LoadedSource, sample: Mapping[Any, Any], dropped: str, seconds: float
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """The record without its files, and the arrays to write; none if the result is not kept."""
        chain = self.pipelines.by_kind[job.kind]
        edits = [dict(sample[key]) for key in chain.record_keys if key in sample]
        edit = edits[-1] if edits else {}
        applied = bool(edits) and all(each["applied"] for each in edits)
        is_accepted = applied and all(each["accepted"] for each in edits)
        reason = "" if is_accepted else dropped or next((str(each["reason"]) for each in edits if each["reason"]), "not applied")
        arrays: dict[str, NDArray[Any]] = {}
        figures: dict[str, float] = {"seconds": round(seconds, 3)}
        if is_accepted or (applied and self.spec.keep_filtered):
            arrays = {role: array_of(sample[key]) for role, key in ((IMAGE, IMAGE), (LABEL, LABEL), ("mask", chain.mask_key))}
            for role, array in arrays.items():
                if tuple(array.shape[1:]) != source.image.shape:
                    raise GridMismatchError(
                        f"the pipeline changed the grid of {role} from {source.image.shape} to {tuple(array.shape[1:])}; results are "
                        "written on the grid of their source: leave out transforms that crop or resample"
                    )
            figures |= _figures(source.image, arrays, is_lesion=job.kind == LESION)
        donor = {"id": str(edit["donor"]), "group": str(edit.get("donor_group", ""))} if edit.get("donor") else None
        prompt = str(edit.get("prompt", ""))
        is_control = job.kind == CONTROL
        words = job.source.words.get("finding", "")
        record = {
            "job": job.name,
            "source_id": job.source.id,
            "copy": job.copy,
            "seed": job.seed,
            "state": ACCEPTED if is_accepted else FILTERED,
            "kind": job.kind,
            "reason": reason,
            "source": source_fields(job.source),
            "donor": donor,
            "prompt": prompt,
            "finding": "" if is_control else finding_of(chain.chain, prompt) or (words if words != NORMAL else ""),
            "label_value": 0 if is_control else _painted_value(source, arrays, chain.label_value),
            "edit": {key: value for key, value in edit.items() if isinstance(value, (str, int, float, bool))},
            "figures": figures,
            "package_version": __version__,
            "model": self.inpainter.get("source", ""),
            "model_sha256": self.inpainter.get("sha256", ""),
        }
        return record, arrays

    def _writers(self, source: LoadedSource, arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[str, Any]]:
        """Role -> (file name, function that writes the file)."""
        if not arrays:
            return {}
        image, label = source.image, source.label
        suffix = _suffix(image)
        ids = np.rint(arrays[LABEL]).astype(np.int64)
        mask = (arrays["mask"] != 0) * np.uint8(255 if image.affine is None else 1)
        write_ids = partial(write_picture, ids, image, dtype=np.uint8) if label is None else partial(write_label, ids, label)
        if label is None and int(ids.max()) > np.iinfo(np.uint8).max:
            raise ValueError(f"class id {int(ids.max())} does not fit the uint8 label of a source without a label; use 255 or less")
        return {
            IMAGE: (f"image{suffix}", partial(write_picture, arrays[IMAGE], image)),
            LABEL: (f"label{suffix if label is None else _suffix(label)}", write_ids),
            "mask": (f"mask{suffix}", partial(write_picture, mask, image, dtype=np.uint8)),
        }


def _painted_value(source: LoadedSource, arrays: Mapping[str, NDArray[Any]], value: int) -> int:
    """The class id that the label has gained; ``value`` if it gained none, or several."""
    if LABEL not in arrays:
        return value
    before, after = array_of(source.sample[LABEL]), np.rint(arrays[LABEL]).astype(np.int64)
    gained = np.unique(after[(after != before) & (after > 0)])
    return int(gained[0]) if gained.size == 1 else value


def _suffix(picture: Picture) -> str:
    suffix = output_suffix(picture.path)
    return ".nii.gz" if suffix == ".nii" else suffix


def _figures(image: Picture, arrays: Mapping[str, NDArray[Any]], *, is_lesion: bool) -> dict[str, float]:
    before, mask = model_values(image), arrays["mask"] != 0
    figures = {}
    if before.max() > before.min() and mask.any():
        figures["local_ssim"] = round(local_ssim(before, arrays[IMAGE], mask), 4)
    if is_lesion:
        spacing_mm = np.ones(3) if image.affine is None else affine_to_spacing(image.affine)
        size = float(mask.sum()) * float(np.prod(spacing_mm[: mask.ndim - 1]))
        figures |= {"lesion_area_mm2": round(size, 3)} if mask.ndim == 3 else {"lesion_volume_ml": round(size / 1000, 6)}
    return figures


def unwrapped(error: BaseException) -> BaseException:
    """The error that a transform raised, out of the RuntimeError that MONAI's ``Compose`` puts around it.

    >>> wrapper = RuntimeError("applying transform <Blur>")
    >>> wrapper.__cause__ = ValueError("sigma")
    >>> unwrapped(wrapper)
    ValueError('sigma')
    """
    while error.__cause__ is not None and str(error).startswith("applying transform"):
        error = error.__cause__
    return error


@contextmanager
def fixed_numerics(threads: int, seed: int) -> Iterator[None]:
    """Set the number of torch's threads and seed the global random states; both are put back at the end of the block."""
    before, python_state, numpy_state = torch.get_num_threads(), random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(threads)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def part_folder(folder: Path) -> Iterator[Path]:
    """A new folder next to ``folder``, renamed to it at the end of the block; removed if the block fails or another worker was first."""
    part = folder.with_name(f".{folder.name}{PART_MARK}{secrets.token_hex(6)}")
    part.mkdir(parents=True)
    try:
        yield part
        if folder.is_dir() and not (folder / RECORD_FILE).is_file():
            shutil.rmtree(folder)  # its record was removed by hand: the job counts as not done
        try:
            part.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def part_folders(results: Path) -> dict[Path, str]:
    """Part folders that interrupted workers left -> the job of each."""
    if not results.is_dir():
        return {}
    with os.scandir(results) as entries:
        return {
            Path(each.path): each.name[1 : each.name.rindex(PART_MARK)]
            for each in entries
            if each.name[0] == "." and PART_MARK in each.name
        }


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that a record is never there without its files, also after a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
