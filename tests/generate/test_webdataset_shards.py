from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from monai_diffaug.generate.export_cases import read_cases
from monai_diffaug.generate.export_labels import class_table
from monai_diffaug.generate.export_run import export_run
from monai_diffaug.generate.run_folder import read_run
from monai_diffaug.generate.webdataset_shards import write_webdataset
from tests.generate.run_folders import small_run


def test_each_case_is_in_one_shard_and_the_folds_follow_the_rule(tmp_path):
    maker = small_run(tmp_path)
    out = tmp_path / "out"
    export_run(maker.run, "webdataset", out)
    index = json.loads((out / "index.json").read_text())
    table = read_cases(read_run(maker.run), maker.datalist)
    stored = [case for cases in index["shards"].values() for case in cases]
    assert sorted(stored) == sorted(case.name for case in table.cases)
    for fold, split in zip(index["folds"], table.splits, strict=True):
        for key, names in (("training", split.training), ("validation", split.validation)):
            assert {case for shard in fold[key] for case in index["shards"][shard]} == set(names)


def test_the_members_are_the_files_and_the_record(tmp_path):
    maker = small_run(tmp_path)
    export_run(maker.run, "webdataset", tmp_path / "out")
    record = maker.records[0]
    (shard,) = [name for name, cases in json.loads((tmp_path / "out/index.json").read_text())["shards"].items() if record.job in cases]
    with tarfile.open(tmp_path / "out" / shard) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar if member.name.startswith(f"{record.job}.")}
    for role in ("image", "label", "mask"):
        assert members[f"{record.job}.{role}.png"] == (maker.run / "results" / record.job / f"{role}.png").read_bytes()
    about = json.loads(members[f"{record.job}.json"])
    assert about["synthetic"] and about["record"]["seed"] == record.seed and about["groups"] == ["A"]


def test_the_same_cases_give_the_same_bytes_and_large_groups_are_divided(tmp_path):
    maker = small_run(tmp_path)
    table = read_cases(read_run(maker.run), maker.datalist)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_webdataset(table, class_table(table), tmp_path / name, shard_cases=1)
    shards = sorted(path.name for path in (tmp_path / "one").glob("*.tar"))
    assert len(shards) == 10
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in shards)


def test_webdataset_reads_the_shards_back(tmp_path):
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed: pip install webdataset")
    maker = small_run(tmp_path)
    out = tmp_path / "out"
    export_run(maker.run, "webdataset", out)
    index = json.loads((out / "index.json").read_text())
    table = read_cases(read_run(maker.run), maker.datalist)
    for fold, split in zip(index["folds"], table.splits, strict=True):
        samples = {
            sample["__key__"]: sample for sample in wds.WebDataset([str(out / name) for name in fold["training"]], shardshuffle=False)
        }
        assert set(samples) == set(split.training)
        for case in table.cases:
            if case.name in samples:
                pixels = np.array(Image.open(io.BytesIO(samples[case.name]["image.png"])))
                assert np.array_equal(pixels, np.array(Image.open(case.images[0])))
    shard = str(out / index["folds"][0]["training"][0])
    image, about = next(iter(wds.WebDataset(shard, shardshuffle=False).decode("pil").to_tuple("image.png", "json")))
    assert image.size == (40, 48) and "case" in about
