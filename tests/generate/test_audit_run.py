from __future__ import annotations

import pytest

from monai_diffaug.generate.audit_run import audit_run
from tests.generate.run_folders import small_run


def test_the_share_of_refused_jobs_and_their_reasons_are_counted(tmp_path):
    maker = small_run(tmp_path)
    maker.result("images/c.png", 2, state="filtered", reason="score 0.31 < 0.5")
    maker.result("images/c.png", 3, state="filtered", reason="copy of training lesion 4")
    maker.finish()
    audit = audit_run(maker.run)
    assert (audit.accepted, audit.filtered, audit.failed) == (6, 3, 0) and audit.refused_share == pytest.approx(1 / 3)
    assert list(audit.reasons.items()) == [("score 0.31 < 0.5", 2), ("copy of training lesion 4", 1)]


def test_without_the_datalist_the_files_are_checked_and_a_note_says_what_is_not(tmp_path):
    maker = small_run(tmp_path)
    maker.datalist.unlink()
    (maker.run / "results" / maker.records[0].job / "image.png").unlink()
    audit = audit_run(maker.run)
    assert [fault.kind for fault in audit.faults] == ["file"]
    assert "name the run's datalist with --data" in audit.notes[0] and audit.copies.note == "not compared"


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of `monai-diffaug generate`"):
        audit_run(tmp_path)
