from __future__ import annotations

import json

import pytest
import torch

from monai_diffaug.training.datalist import ANY_VALUE, Words, mask_of, read_datalist
from monai_diffaug.training.run_settings import TrainingInputError


def write(folder, content):
    for name in ("a.png", "b.png"):
        (folder / name).touch()
    file = folder / "list.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


ROW = {"image": "a.png", "label": "b.png"}
WORDS = Words("ct", "abdomen", "spleen")


def test_words_come_from_the_entry_then_the_call_then_the_top_of_the_file(tmp_path):
    rows = [ROW, {**ROW, "finding": "hepatic cyst"}]
    file = write(tmp_path, {"modality": "mri", "anatomy": "brain", "training": rows})
    first, second = read_datalist(file, Words(modality="ct", finding="spleen"))
    assert (first.modality, first.anatomy, first.findings) == ("ct", "brain", {(): "spleen"})
    assert second.findings == {(): "hepatic cyst"}
    assert first.image == tmp_path / "a.png"


def test_the_decathlon_tables_are_read(tmp_path):
    top = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen", "2": "liver metastasis"}}
    (entry,) = read_datalist(write(tmp_path, {**top, "training": [ROW]}), Words(anatomy="abdomen"))
    assert entry.modality == "CT" and entry.findings == {(1,): "spleen", (2,): "liver metastasis"}


def test_a_prompt_needs_no_other_words(tmp_path):
    (entry,) = read_datalist(write(tmp_path, {"training": [{**ROW, "prompt": "a strange mass"}]}))
    assert entry.prompt == "a strange mass" and not entry.is_normal


def test_a_prompt_serves_where_the_modality_has_no_vocabulary(tmp_path):
    row = {**ROW, "modality": "PET", "anatomy": "chest", "prompt": "PET of chest, node"}
    (entry,) = read_datalist(write(tmp_path, {"training": [row]}))
    assert entry.modality == "" and entry.prompt == "PET of chest, node"  # captions of the tissue beside it are composed without


def test_normal_tissue_needs_no_label(tmp_path):
    (entry,) = read_datalist(write(tmp_path, {"training": [{"image": "a.png", "finding": "normal tissue"}]}), WORDS)
    assert entry.is_normal and entry.label is None


def test_a_missing_validation_list_is_empty(tmp_path):
    assert read_datalist(write(tmp_path, {"training": [ROW]}), WORDS, "validation") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ([ROW], 'with a "training" list'),
        ({"validation": [ROW]}, 'no "training" list'),
        ({"training": []}, "must be a list of entries"),
        ({"training": [{"label": "b.png"}]}, r'training\[0\]: an entry needs "image"'),
        ({"training": [ROW, {"image": "a.png"}]}, r'training\[1\]: an entry needs "label"'),
        ({"training": [{**ROW, "image": "c.png"}]}, "image .*c.png does not exist"),
        ({"training": [{**ROW, "modality": "PET"}]}, "'PET' has no vocabulary"),
        ({"training": [{**ROW, "finding": {"one": "spleen"}}]}, "must be label values, got one"),
        ({"training": [{**ROW, "finding": {"1": None}}]}, "no word for label value 1"),
        ({"training": [{**ROW, "finding": {"0,1": "spleen"}}]}, "0 is the background and in no union"),
        ({"training": [{"image": "a.png", "label": None, "finding": {"1": "spleen"}}]}, r'training\[0\]: an entry needs "label"'),
    ],
)
def test_errors_name_the_entry_and_what_is_wrong(tmp_path, content, message):
    with pytest.raises(TrainingInputError, match=message):
        read_datalist(write(tmp_path, content), WORDS)


def test_missing_words_are_named(tmp_path):
    with pytest.raises(TrainingInputError, match="anatomy, finding missing; .* --anatomy"):
        read_datalist(write(tmp_path, {"training": [ROW]}), Words(modality="ct"))


def test_a_missing_datalist_is_named(tmp_path):
    with pytest.raises(TrainingInputError, match=r"none\.json: no such file"):
        read_datalist(tmp_path / "none.json")


def test_a_list_of_labels_is_a_table_and_a_mark_at_the_files_beginning_is_no_fault(tmp_path):
    content = {"labels": ["background", "spleen", "liver metastasis"], "training": [ROW]}
    (entry,) = read_datalist(write(tmp_path, "\ufeff" + json.dumps(content)), Words("ct", "abdomen"))
    assert entry.findings == {(1,): "spleen", (2,): "liver metastasis"}


def test_a_union_of_label_values_is_one_finding(tmp_path):
    row = {**ROW, "finding": {"1,2": "optic disc", "2": "optic cup"}, "modality": "fundus", "anatomy": "retina"}
    (entry,) = read_datalist(write(tmp_path, {"training": [row]}))
    assert entry.findings == {(1, 2): "optic disc", (2,): "optic cup"}
    ids = torch.tensor([[0, 1, 2, 3]])
    assert mask_of(ids, (1, 2)).tolist() == [[False, True, True, False]]
    assert mask_of(ids, (2,)).tolist() == [[False, False, True, False]]
    assert mask_of(ids, ANY_VALUE).tolist() == [[False, True, True, True]]


def test_a_finding_without_an_outline_has_a_null_label(tmp_path):
    row = {"image": "a.png", "label": None, "finding": "pneumonia", "modality": "x-ray", "anatomy": "chest"}
    (entry,) = read_datalist(write(tmp_path, {"training": [row]}))
    assert entry.label is None and entry.findings == {ANY_VALUE: "pneumonia"} and not entry.is_normal


def test_data_set_and_group_are_read_from_the_entry_and_the_data_set_from_the_top(tmp_path):
    rows = [{**ROW, "dataset": "spleens", "group": 7}, ROW]
    first, second = read_datalist(write(tmp_path, {"dataset": "all", "training": rows}), WORDS)
    assert (first.dataset, first.group) == ("spleens", "7") and (second.dataset, second.group) == ("all", "")
