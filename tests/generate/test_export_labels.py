from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from monai_diffaug.generate.export_cases import ExportError, read_cases
from monai_diffaug.generate.export_labels import class_table, read_label
from monai_diffaug.generate.run_folder import read_run
from tests.generate.run_folders import small_run


def table_of(maker):
    return read_cases(read_run(maker.finish()), maker.datalist)


def test_ids_with_gaps_are_renumbered_in_their_order(tmp_path):
    classes = class_table(table_of(small_run(tmp_path, ids={"mass": 4}, value=4)))
    assert classes.new_id == {0: 0, 4: 1} and classes.names == ("background", "mass") and not classes.is_identity


def test_gaps_are_refused_where_the_ids_must_stay(tmp_path):
    with pytest.raises(ExportError, match=r"\[0, 4\], not 0, 1, 2"):
        class_table(table_of(small_run(tmp_path, ids={"mass": 4}, value=4)), consecutive=False)


def test_a_named_class_that_no_label_has_keeps_its_number(tmp_path):
    classes = class_table(table_of(small_run(tmp_path, ids={"mass": 2, "cyst": 1}, value=2)))
    assert classes.new_id == {0: 0, 1: 1, 2: 2} and classes.names == ("background", "cyst", "mass") and classes.is_identity


def test_the_ignored_class_is_the_last_one(tmp_path):
    classes = class_table(table_of(small_run(tmp_path, ids={"unsure": 1, "mass": 2}, value=2)), ignore=1)
    assert classes.names == ("background", "mass", "ignore") and classes.new_id == {0: 0, 2: 1, 1: 2}
    with pytest.raises(ExportError, match="background and cannot be ignored"):
        class_table(table_of(small_run(tmp_path / "again")), ignore=0)


def test_the_names_come_from_the_labels_table_and_from_unions_no_name_comes(tmp_path):
    maker = small_run(tmp_path, ids={"lesion": 1})
    for entry in maker.entries:
        entry["finding"] = {"1,2": "disc", "2": "cup"}
    assert class_table(table_of(maker)).names == ("background", "lesion", "cup")  # class 1 by the records
    maker.more = {"labels": {"0": "background", "1": "rim", "2": "cup"}}
    assert class_table(table_of(maker)).names == ("background", "rim", "cup")


def test_a_class_that_stands_for_several_findings_has_all_their_names(tmp_path):
    maker = small_run(tmp_path)
    maker.entries[0]["finding"] = "benign mass"
    assert class_table(table_of(maker)).names[1] == "benign mass or lesion"


def test_a_label_as_jpeg_is_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "l.jpg")
    with pytest.raises(ExportError, match="save it as PNG"):
        read_label(tmp_path / "l.jpg")
