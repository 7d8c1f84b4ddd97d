"""The index: one line per finished job, and the same as a table."""

import json
from pathlib import Path

import pytest

from monai_diffaug.generate import index_file
from monai_diffaug.generate.index_file import write_index
from monai_diffaug.generate.job_record import JobRecord


def write_run(folder: Path) -> Path:
    (folder / "results").mkdir(parents=True)
    (folder / "run.json").write_text('{"format": 1}')
    for job, donor in (("b-000", None), ("a-000", {"id": "d", "group": "p"})):
        source = {"image": "a.png", "group": "p1", "fold": None}
        edit, figures = {"score": 0.75, "tries": 2}, {"seconds": 1.5}
        record = JobRecord(job, "a.png", 0, 2**32 - 2, "accepted", "lesion", source=source, donor=donor, edit=edit, figures=figures)
        (folder / "results" / job).mkdir()
        (folder / "results" / job / "record.json").write_text(record.to_json())
    return folder


def test_the_lines_are_the_records_in_the_order_of_their_names(tmp_path: Path) -> None:
    run = write_index(write_run(tmp_path / "run"))
    lines = (tmp_path / "run/index.jsonl").read_text().splitlines()
    assert [JobRecord.from_json(line) for line in lines] == list(run.records) and [record.job for record in run.records] == [
        "a-000",
        "b-000",
    ]


def test_the_table_has_one_row_per_job_with_types_that_do_not_depend_on_the_values(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    write_index(write_run(tmp_path / "run"))
    table = parquet.read_table(tmp_path / "run/index.parquet")
    rows = table.to_pylist()
    assert [row["job"] for row in rows] == ["a-000", "b-000"] and rows[0]["seed"] == 2**32 - 2 and rows[0]["edit_score"] == 0.75
    assert json.loads(rows[0]["donor"]) == {"id": "d", "group": "p"} and rows[1]["donor"] is None and rows[0]["source_group"] == "p1"
    assert str(table.schema.field("source_fold").type) == "int32" and str(table.schema.field("figures_local_ssim").type) == "double"


def test_an_index_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run")
    write_index(folder)
    before = (folder / "index.jsonl").read_bytes()
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        index_file.write_index(folder)
    assert (folder / "index.jsonl").read_bytes() == before and not list(folder.glob(".*part*"))
