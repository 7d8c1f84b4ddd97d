"""Export a finished run as a data set that a training framework reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_diffaug.generate.bids_derivative import write_bids
from monai_diffaug.generate.decathlon_folder import require_task_name, write_decathlon
from monai_diffaug.generate.export_cases import DEFAULT_FOLDS, TRAINING, ExportError, datalist_of, read_cases
from monai_diffaug.generate.export_datalist import write_monai
from monai_diffaug.generate.export_folder import EXPORT_FILE, describe, whole_folder, write_json
from monai_diffaug.generate.export_labels import ClassTable, class_table
from monai_diffaug.generate.nnunet_raw import require_dataset_name, write_nnunet
from monai_diffaug.generate.run_folder import read_run
from monai_diffaug.generate.webdataset_shards import write_webdataset

__all__ = ["FORMATS", "Exported", "export_run"]

FORMATS = ("nnunet", "decathlon", "monai", "bids", "webdataset")


@dataclass(frozen=True)
class Exported:
    """Figures of an export.

    Attributes:
        real, synthetic: number of cases.
        folds: number of folds.
        never_training: synthetic cases that may train in no fold.
        without_label: real entries left out, because they show a finding and have no label.
        classes: names and ids of the classes.
        written: what the format had to write besides, e.g. "real labels written".
    """

    real: int
    synthetic: int
    folds: int
    never_training: tuple[str, ...]
    without_label: int
    classes: ClassTable
    written: Mapping[str, int]


def export_run(
    run_folder: Path | str,
    export_format: str,
    out: Path | str,
    *,
    datalist: Path | str | None = None,
    section: str = TRAINING,
    folds: int = DEFAULT_FOLDS,
    ignore: int | None = None,
    keep_ids: bool = False,
    channels: Sequence[str] = (),
    suffix: str = "",
) -> Exported:
    """Export the accepted results of a run together with the real cases of a datalist; the folder appears whole or not at all.

    Args:
        run_folder: of a finished ``monai-diffaug generate``.
        export_format: "nnunet", "decathlon", "monai", "bids" or "webdataset".
        out: folder of the export. An earlier export there is replaced, nothing else.
        datalist: the real cases; by default the datalist of the run.
        section: list of the datalist.
        folds: number of folds where neither the entries nor a list "validation" say them.
        ignore: class id that training leaves out (nnU-Net and Decathlon).
        keep_ids: refuse class ids with gaps; otherwise they are renumbered 0, 1, 2, ... for nnU-Net and Decathlon.
        channels: names of the channels (nnU-Net and Decathlon).
        suffix: contrast of MRI (BIDS), e.g. "T2w".

    Raises:
        FileNotFoundError: no run in the folder.
        RecordError: a damaged record.
        ExportError: unknown format, no accepted result, or the cases do not fit the format; the message says what to do.
        OSError: a file cannot be written.
    """
    out = Path(out).absolute()
    run = read_run(Path(run_folder).absolute())  # lists name files by absolute paths
    if export_format not in FORMATS:
        raise ExportError(f"unknown format {export_format!r}; use {', '.join(FORMATS)}")
    if export_format == "nnunet":
        require_dataset_name(out)
    elif export_format == "decathlon":
        require_task_name(out)
    if not run.accepted:
        raise ExportError(
            f"{run.folder} has no accepted result ({len(run.filtered)} filtered, {len(run.failures)} failed); nothing to export"
        )
    table = read_cases(run, datalist_of(run, None if datalist is None else Path(datalist)), section=section, folds=folds)
    classes = class_table(table, ignore=ignore, consecutive=not keep_ids)
    with whole_folder(out) as part:
        write_json(part / EXPORT_FILE, describe(run, table, export_format))
        if export_format == "nnunet":
            written = write_nnunet(table, classes, part, channels=channels)
        elif export_format == "decathlon":
            written = write_decathlon(table, classes, part, channels=channels, name=out.name)
        elif export_format == "monai":
            written = write_monai(table, part)
        elif export_format == "bids":
            written = write_bids(table, classes, part, run=run, suffix=suffix)
        else:
            written = write_webdataset(table, classes, part)
    return Exported(len(table.real), len(table.synthetic), len(table.splits), table.never_training, table.without_label, classes, written)
