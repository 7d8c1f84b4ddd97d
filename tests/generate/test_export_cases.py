from __future__ import annotations

import json

import pytest

from monai_diffaug.generate.export_cases import ExportError, read_cases
from monai_diffaug.generate.run_folder import read_run
from tests.generate.run_folders import Maker, small_run


def table_of(maker: Maker, **options):
    return read_cases(read_run(maker.finish()), maker.datalist, **options)


def test_accepted_results_and_all_labelled_images_are_cases(tmp_path):
    maker = small_run(tmp_path)
    table = table_of(maker, folds=3)
    assert len(table.real) == 4 and len(table.synthetic) == 6  # the filtered one is none
    assert {case.name for case in table.synthetic} == {record.job for record in maker.records if record.state == "accepted"}
    with_donor = next(case for case in table.synthetic if len(case.groups) == 2)
    assert with_donor.groups == ("A", "B") and with_donor.sources == ("images/a1.png", "images/b.png")


def test_real_and_synthetic_names_begin_alike_and_are_unique(tmp_path):
    table = table_of(small_run(tmp_path))
    names = [case.name for case in table.cases]
    assert len(set(names)) == len(names)
    assert all(any(name.startswith(f"{case.name}-") for name in names) for case in table.real)


def test_a_name_has_no_dot(tmp_path):
    maker = Maker(tmp_path)
    maker.result(maker.source("scan.1", group="A"))
    maker.source("other", group="B")
    assert not [case.name for case in table_of(maker).cases if "." in case.name]


def test_the_folds_of_the_entries_are_used(tmp_path):
    maker = Maker(tmp_path)
    for name, fold in (("a", 1), ("b", 0), ("c", 1)):
        maker.result(maker.source(name, fold=fold))
    table = table_of(maker)
    assert [len(split.validation) for split in table.splits] == [1, 2]
    assert next(case.name for case in table.real if case.name in table.splits[0].validation).startswith("b-")


def test_a_validation_list_is_the_one_fold_and_a_donor_from_it_never_trains(tmp_path):
    maker = Maker(tmp_path)
    train, held_out = maker.source("a"), maker.source("v")
    maker.result(train)
    bad = maker.result(train, 1, donor=f"{held_out}#1")  # as a donor bank names its lesions
    maker.more = {"validation": [maker.entries.pop()]}
    table = table_of(maker)
    assert len(table.splits) == 1
    assert table.never_training == (bad.job,)
    assert bad.job not in table.splits[0].training and len(table.splits[0].training) == 2


def test_a_donor_that_the_datalist_does_not_have_never_trains(tmp_path):
    maker = Maker(tmp_path)
    maker.source("b")
    bad = maker.result(maker.source("a"), donor="another data set/7.png#1")
    assert table_of(maker).never_training == (bad.job,)


def test_one_number_in_two_data_sets_is_two_groups(tmp_path):
    maker = Maker(tmp_path)
    maker.result(maker.source("a", group="1", dataset="x", fold=0))
    maker.result(maker.source("b", group="1", dataset="y", fold=1))
    assert set(table_of(maker).fold_of) == {"x/1", "y/1"}


def test_normal_images_without_a_label_are_cases_and_findings_without_one_are_left_out(tmp_path):
    maker = small_run(tmp_path)
    maker.source("n", finding="normal tissue", label=None)
    maker.source("f", finding="pneumonia", label=None)
    table = table_of(maker)
    assert table.without_label == 1
    assert [case.label for case in table.real].count(None) == 1 and len(table.real) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.entries[0].update(fold=0), "give all entries a fold, or none"),
        (lambda m: [e.update(fold=i % 2) for i, e in enumerate(m.entries)], "'A' in fold 0, fold 1"),
        (lambda m: m.more.update(test=[m.entries[0]]), "'A' is in the list 'test'"),
        (lambda m: m.entries.pop(), "no entry for the source images/c.png"),
        (lambda m: m.entries[0].update(image="gone.png"), "gone.png does not exist"),
        (lambda m: m.entries[0].update(image=None), "an entry needs"),
    ],
)
def test_a_datalist_that_leaks_or_does_not_fit_is_refused(tmp_path, change, message):
    maker = small_run(tmp_path)
    change(maker)
    with pytest.raises(ExportError, match=message):
        table_of(maker)


def test_no_json_and_another_section_are_named(tmp_path):
    maker = small_run(tmp_path)
    run = read_run(maker.run)
    with pytest.raises(ExportError, match='no list "test"; it has training'):
        read_cases(run, maker.datalist, section="test")
    maker.datalist.write_text("{")
    with pytest.raises(ExportError, match="is no JSON"):
        read_cases(run, maker.datalist)
    maker.datalist.write_text(json.dumps([1]))
    with pytest.raises(ExportError, match="must be a JSON object"):
        read_cases(run, maker.datalist)
