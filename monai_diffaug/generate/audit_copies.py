"""Near-copies among the results of a run: lesions that repeat a real lesion, or the bytes of another result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from monai_diffaug.data.lesion_bank import LesionBank
from monai_diffaug.errors import one_line
from monai_diffaug.files.image_file import read_picture
from monai_diffaug.files.picture_tensor import model_values, tensor_on_grid
from monai_diffaug.generate.audit_files import Fault
from monai_diffaug.generate.export_cases import source_of_donor
from monai_diffaug.generate.export_labels import read_label
from monai_diffaug.generate.job_record import LESION, JobRecord
from monai_diffaug.generate.run_folder import Run
from monai_diffaug.generate.source_images import SourceImage, load_source

__all__ = ["CopyCheck", "near_copies", "same_bytes"]

QUANTILE = 0.95  # of the similarities among real lesions of different groups, as LesionNovelty
COPY = 0.95  # a lesion pasted elsewhere reaches 0.97; smooth lesions of different patients 0.9


class CopyCheck(NamedTuple):
    """Comparison of painted lesions with the real ones.

    Attributes:
        faults: lesions that are copies of a real lesion of another image.
        compared: number of compared results.
        similar: one line for each other result above the 95 % quantile of the similarities among real lesions of different groups; 5 % of
            new real lesions are, too.
        by_design: results whose nearest lesion is their own source's or donor's.
        note: why nothing could be compared, else empty.
    """

    faults: tuple[Fault, ...] = ()
    compared: int = 0
    similar: tuple[str, ...] = ()
    by_design: int = 0
    note: str = ""


def same_bytes(records: Iterable[JobRecord]) -> Iterator[Fault]:
    """Results whose image file is that of another result."""
    jobs: dict[str, str] = {}
    for record in records:
        digest = (record.sha256 or {}).get("image")
        if digest and jobs.setdefault(digest, record.job) != record.job:
            yield Fault("copy", record.job, f"the image is that of {jobs[digest]}")


def near_copies(run: Run, sources: Mapping[str, SourceImage]) -> CopyCheck:
    """Compare each painted lesion with the real lesions of its class (``LesionBank``).

    The lesion of the result's own source or donor counts as similar by design: an edit under the same label, a transplant. A result is a
    fault from a correlation of 0.95 on, if no two real lesions of different groups are as similar.

    Args:
        run: the run.
        sources: id -> entry of the datalist; their labels are the real lesions.
    """
    by_value: dict[int, list[JobRecord]] = defaultdict(list)
    for record in run.accepted:
        if record.kind == LESION and record.label_value > 0 and {"image", "label", "mask"} <= (record.files or {}).keys():
            by_value[record.label_value].append(record)
    if not by_value:
        return CopyCheck(note="no painted lesion to compare")
    faults: list[Fault] = []
    similar: list[str] = []
    compared = by_design = 0
    notes = []
    for value, records in sorted(by_value.items()):
        labelled = [source for source in sources.values() if source.label is not None]
        try:
            bank = LesionBank.of(_samples(labelled), label_value=value, group_key="group")
        except (ValueError, OSError) as error:
            notes.append(f"class {value}: {one_line(error)}")
            continue
        limit, highest = float(np.quantile(bank.yardstick, QUANTILE)), max(float(bank.yardstick.max()), COPY)
        for record in records:
            try:
                similarity, index = _nearest(run, record, bank)
            except (ValueError, OSError) as error:  # a fault of the file, which the other checks name
                notes.append(f"{record.job}: {one_line(error)}")
                continue
            compared += 1
            if similarity < limit or index < 0:
                continue
            if labelled[index].id in _origins(record, sources):
                by_design += 1
                continue
            text = f"correlation {similarity:.2f} with a lesion in {labelled[index].id}"
            if similarity >= highest:
                faults.append(Fault("copy", record.job, f"near-copy: {text}"))
            else:
                similar.append(f"{record.job}: {text}")
    return CopyCheck(tuple(faults), compared, tuple(similar), by_design, "; ".join(notes))


def _origins(record: JobRecord, sources: Mapping[str, SourceImage]) -> set[str]:
    """Ids of the images that a result was made of."""
    ids = {source.image: id_ for id_, source in sources.items()} | {id_: id_ for id_ in sources}
    names = [record.source_id] + ([source_of_donor(str(record.donor["id"]), ids)] if record.donor else [])
    return {ids.get(name, name) for name in names}


def _samples(sources: Iterable[SourceImage]) -> Iterator[dict[Any, Any]]:
    for source in sources:
        yield load_source(source).sample | {"group": source.group}


def _nearest(run: Run, record: JobRecord, bank: LesionBank) -> tuple[float, int]:
    image = read_picture(run.file(record, "image"))
    lesion = (read_label(run.file(record, "label"))[0] == record.label_value) & (read_label(run.file(record, "mask"))[0] > 0)
    nearest = bank.nearest(tensor_on_grid(model_values(image), image), tensor_on_grid(lesion.astype(np.uint8), image))
    return nearest.similarity, nearest.image
