from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
from monai.apps.auto3dseg.auto_runner import AutoRunner
from monai.auto3dseg.utils import datafold_read
from monai.data.decathlon_datalist import load_decathlon_datalist
from monai.transforms import LoadImage
from PIL import Image

from monai_diffaug.generate.export_run import export_run
from tests.generate.run_folders import small_run


def exported(tmp_path, **entries):
    maker = small_run(tmp_path)
    for entry in maker.entries:
        entry.update(entries)
    maker.finish()
    export_run(maker.run, "monai", tmp_path / "out")
    return maker, tmp_path / "out"


def test_monai_loads_the_lists_of_each_fold(tmp_path):
    _, out = exported(tmp_path)
    real = load_decathlon_datalist(out / "datalist.json")
    synthetic = load_decathlon_datalist(out / "datalist.json", data_list_key="synthetic")
    assert len(real) == 4 and len(synthetic) == 6 and {item["fold"] for item in real} == {0, 1, 2}
    for k in range(3):
        training, validation = (load_decathlon_datalist(out / f"fold_{k}.json", data_list_key=key) for key in ("training", "validation"))
        assert {item["case"] for item in validation} == {item["case"] for item in real if item["fold"] == k}
        expected = {item["case"] for item in real if item["fold"] != k} | {item["case"] for item in synthetic if k in item["folds"]}
        assert {item["case"] for item in training} == expected
        load = LoadImage(image_only=True)
        assert all(load(item["image"]).shape == load(item["label"]).shape for item in training + validation)


def test_a_run_and_a_datalist_named_by_relative_paths_give_lists_that_hold_anywhere(tmp_path, monkeypatch):
    maker = small_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    export_run("run", "monai", "out", datalist="datalist.json")
    monkeypatch.chdir("/")
    for key in ("training", "synthetic"):
        items = load_decathlon_datalist(tmp_path / "out" / "datalist.json", data_list_key=key)
        assert all(Path(item[role]).is_file() for item in items for role in ("image", "label"))
    assert len(items) == len([record for record in maker.records if record.state == "accepted"])


def test_auto3dseg_reads_the_folds_of_the_real_cases(tmp_path):
    _, out = exported(tmp_path)
    for k in range(3):
        training, validation = datafold_read(str(out / "datalist.json"), str(out), fold=k)
        groups = [{item["group"] for item in part} for part in (training, validation)]
        assert validation and not groups[0] & groups[1]


def test_auto3dseg_takes_the_list_of_a_fold_as_one_fold(tmp_path, caplog):
    caplog.set_level(logging.ERROR, logger="monai.apps.auto3dseg.auto_runner")  # one of its messages lacks a %s, which pytest raises
    _, out = exported(tmp_path)
    before = json.loads((out / "fold_1.json").read_text())
    runner = AutoRunner.__new__(AutoRunner)  # its constructor downloads templates
    runner.data_src_cfg = {}
    assert runner.inspect_datalist_folds(str(out / "fold_1.json")) == 1
    training, validation = datafold_read(str(out / "fold_1.json"), str(out), fold=0)
    for items, key in ((validation, "validation"), (training, "training")):
        assert [item["image"] for item in items] == [item["image"] for item in before[key]]


def test_a_normal_image_has_a_blank_label_and_nothing_else_is_written(tmp_path):
    maker = small_run(tmp_path)
    maker.source("n", finding="normal tissue", label=None)
    maker.finish()
    export_run(maker.run, "monai", tmp_path / "out")
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file())
    (label,) = [name for name in files if name.endswith(".png")]
    assert set(files) - {label} == {"datalist.json", "export.json", *(f"fold_{k}.json" for k in range(4))}
    item = next(item for item in load_decathlon_datalist(tmp_path / "out" / "datalist.json") if item["case"].startswith("n-"))
    assert not np.array(Image.open(item["label"])).any()
