"""The record of a job: what comes back is what was written, and nothing else is read."""

import json
from dataclasses import replace

import pytest

from monai_diffaug.generate.job_record import JobRecord, RecordError

RECORD = JobRecord(
    job="scan-0a1b2c3d-000",
    source_id="scan.png",
    copy=0,
    seed=7,
    state="accepted",
    kind="lesion",
    files={"image": "image.png"},
    sha256={"image": "0" * 64},
    source={"image": "scan.png", "group": "p1", "fold": None},
    figures={"seconds": 0.5},
)


def test_a_record_comes_back_as_it_was_written() -> None:
    assert JobRecord.from_json(RECORD.to_json()) == RECORD
    assert json.loads(RECORD.to_json())["source"]["fold"] is None and "\n" not in RECORD.to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[1]", "must be a JSON object, got list"),
        ('{"format": 2}', "of format 2, this version reads 1"),
        ('{"format": 1, "speed": 3}', "missing keys .*job.* unknown keys .speed"),
        (RECORD.to_json().replace('"accepted"', '"failed"'), "state must be accepted or filtered, got 'failed'"),
        (RECORD.to_json().replace('"lesion"', '"tumour"'), "kind must be lesion or control"),
    ],
)
def test_what_is_no_record_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        JobRecord.from_json(text)


def test_two_records_share_no_default() -> None:
    one, other = replace(RECORD, files={}), JobRecord(job="a", source_id="a", copy=0, seed=0, state="filtered", kind="control")
    assert one.edit == other.edit == {} and one.edit is not JobRecord(**{**vars(other)}).figures
