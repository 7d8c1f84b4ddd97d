from __future__ import annotations

import hashlib
import json

import pytest

from monai_diffaug.generate.audit_run import audit_run
from monai_diffaug.generate.audit_withdraw import delete_descendants, descendants_in_export, descendants_of
from monai_diffaug.generate.export_run import export_run
from monai_diffaug.generate.run_folder import read_run
from monai_diffaug.generate.run_lock import RunLockedError, lock_run
from tests.generate.run_folders import small_run


def test_descendants_by_source_donor_lesion_and_patient(tmp_path):
    run = read_run(small_run(tmp_path).run)
    by_b = {(descendant.record.job[:2], descendant.role) for descendant in descendants_of(run, "images/b.png")}
    assert by_b == {("b-", "source"), ("a1", "donor")}
    assert len(descendants_of(run, "images/c.png")) == 2  # the filtered one too
    assert {descendant.record.job[:2] for descendant in descendants_of(run, "A")} == {"a1", "a2"}
    assert descendants_of(run, "images/z.png") == []


def test_a_lesion_of_a_bank_descends_from_its_image(tmp_path):
    maker = small_run(tmp_path)
    maker.result("images/c.png", 2, donor="images/b.png#3")
    run = read_run(maker.finish())
    for name in ("images/b.png", "images/b.png#3"):
        assert "c-" in {descendant.record.job[:2] for descendant in descendants_of(run, name)}
    assert "c-" not in {descendant.record.job[:2] for descendant in descendants_of(run, "images/b.png#1")}


def test_deletion_removes_results_failures_and_lines_of_the_index_and_nothing_else(tmp_path):
    maker = small_run(tmp_path)
    (maker.run / "failed").mkdir()
    digest = hashlib.sha256(b"images/b.png").hexdigest()[:8]
    for name in (f"b-{digest}-002", "c-00000000-002"):
        failure = {"job": name, "error": "x", "attempts": 1, "traceback": ""}
        (maker.run / "failed" / f"{name}.json").write_text(json.dumps(failure))
    run = read_run(maker.run)
    descendants = descendants_of(run, "images/b.png")
    assert delete_descendants(run, "images/b.png", descendants) == 3
    after = read_run(maker.run)
    assert {record.job for record in after.records} == {r.job for r in run.records} - {d.record.job for d in descendants}
    assert [failure.job for failure in after.failures] == ["c-00000000-002"]
    lines = [json.loads(line)["job"] for line in (maker.run / "index.jsonl").read_text().splitlines()]
    assert lines == [record.job for record in after.records]
    assert not [path for path in (maker.run / "results").iterdir() if path.name.startswith(".")]
    assert (tmp_path / "images/b.png").exists()
    assert [fault.kind for fault in audit_run(maker.run, copies=False).faults] == ["failed"]
    assert descendants_of(after, "images/b.png") == []


def test_the_run_forgets_the_source_and_keeps_everything_else_in_its_settings(tmp_path):
    maker = small_run(tmp_path)
    settings = json.loads((maker.run / "run.json").read_text())
    settings["sources"] = {entry["image"]: {"image_sha256": "0"} for entry in maker.entries}
    (maker.run / "run.json").write_text(json.dumps(settings))
    run = read_run(maker.run)
    delete_descendants(run, "A", descendants_of(run, "A"))  # a patient with two images
    after = json.loads((maker.run / "run.json").read_text())
    assert set(after.pop("sources")) == {"images/b.png", "images/c.png"}
    settings.pop("sources")
    assert after == settings


def test_the_cases_of_an_export_that_hold_descendants(tmp_path):
    maker = small_run(tmp_path)
    export_run(maker.run, "monai", tmp_path / "out")
    descendants = descendants_of(read_run(maker.run), "images/c.png")
    assert [name[:2] for name in descendants_in_export(tmp_path / "out", descendants)] == ["c-"]


def test_a_run_that_is_in_use_is_not_touched(tmp_path):
    run = read_run(small_run(tmp_path).run)
    with lock_run(run.folder), pytest.raises(RunLockedError, match="in use by pid"):
        delete_descendants(run, "images/b.png", descendants_of(run, "images/b.png"))
    assert len(read_run(run.folder).records) == len(run.records)
