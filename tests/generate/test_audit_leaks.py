from __future__ import annotations

import json

import pytest

from monai_diffaug.generate.audit_run import audit_run
from monai_diffaug.generate.export_cases import ExportError
from monai_diffaug.generate.export_run import export_run
from tests.generate.run_folders import Maker, small_run


def leaks_of(maker, **options):
    return [fault.text for fault in audit_run(maker.run, copies=False, **options).faults if fault.kind == "leak"]


def folded(tmp_path) -> Maker:
    maker = Maker(tmp_path)
    sources = [maker.source(name, group=name, fold=fold) for name, fold in (("a", 0), ("b", 0), ("c", 1))]
    maker.result(sources[0], donor=f"{sources[1]}#1")
    maker.result(sources[2])
    return maker


def test_a_donor_of_the_same_fold_is_no_leak_and_one_of_another_fold_is(tmp_path):
    maker = folded(tmp_path)
    maker.finish()
    assert leaks_of(maker) == []
    maker.result("images/a.png", 1, donor="images/c.png#1")
    maker.finish()
    assert leaks_of(maker) == ["its source is in fold 0, its donor images/c.png#1 in fold 1"]


def test_a_group_in_two_folds_is_a_leak(tmp_path):
    maker = folded(tmp_path)
    maker.source("d", group="a", fold=1)
    maker.result("images/d.png")
    maker.finish()
    texts = " ".join(leaks_of(maker))
    assert "the group 'a' is in the folds 0 and 1" in texts and "'a' in fold 0, fold 1" in texts


def test_a_patient_id_that_changed_after_the_run_is_a_leak(tmp_path):
    maker = small_run(tmp_path)
    maker.entries[0]["group"] = "Z"
    maker.finish()
    assert leaks_of(maker) == ["its source was of group 'A', fold None; the datalist now says 'Z', fold None"] * 2


def test_a_source_that_is_also_in_a_test_list_is_a_leak(tmp_path):
    maker = small_run(tmp_path)
    maker.more["test"] = [maker.entries[3]]
    maker.finish()
    assert "'C' is in the list 'test'" in leaks_of(maker)[0]


NAMES = {"nnunet": "Dataset501_T", "decathlon": "Task501_T", "monai": "monai", "webdataset": "shards"}


@pytest.mark.parametrize("export_format", NAMES)
def test_the_splits_of_an_export_are_read_from_its_files(tmp_path, export_format):
    maker = small_run(tmp_path)
    out = tmp_path / NAMES[export_format]
    export_run(maker.run, export_format, out)
    assert leaks_of(maker, exports=[out]) == []
    if export_format in ("nnunet", "decathlon"):
        splits = json.loads((out / "splits_final.json").read_text())
        splits[0]["train"].append(splits[0]["val"][0] + "-000")
        splits[1]["val"].append(maker.records[0].job)
        (out / "splits_final.json").write_text(json.dumps(splits))
    elif export_format == "monai":
        content = [json.loads((out / f"fold_{k}.json").read_text()) for k in (0, 1)]
        content[0]["training"].append({"case": content[0]["validation"][0]["case"] + "-000"})
        content[1]["validation"].append({"case": maker.records[0].job})
        for k in (0, 1):
            (out / f"fold_{k}.json").write_text(json.dumps(content[k]))
    else:
        index = json.loads((out / "index.json").read_text())
        index["folds"][0]["training"].append("synthetic-not0-000000.tar")
        index["folds"][1]["validation"].append("synthetic-not0-000000.tar")
        (out / "index.json").write_text(json.dumps(index))
    texts = leaks_of(maker, exports=[out])
    assert "trains in fold 0, where its group 'A' validates" in texts and "is synthetic and validates in fold 1" in texts


def test_a_result_that_the_run_no_longer_has_and_a_folder_that_is_no_export(tmp_path):
    maker = small_run(tmp_path)
    export_run(maker.run, "bids", tmp_path / "bids")
    assert leaks_of(maker, exports=[tmp_path / "bids"]) == []
    (maker.run / "results" / maker.records[0].job).rename(tmp_path / "gone")
    assert leaks_of(maker, exports=[tmp_path / "bids"]) == ["the run has no such result any more; export again"]
    with pytest.raises(ExportError, match="no folder of `monai-diffaug export`"):
        leaks_of(maker, exports=[tmp_path])
