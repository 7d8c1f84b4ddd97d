from __future__ import annotations

import pytest

from monai_diffaug.generate.export_splits import Split, assign_folds, one_fold_each, splits_of

REAL = {"a1": "A", "a2": "A", "b": "B", "c": "C"}
SYNTHETIC = {"a1-0": ["A"], "a1-with-b": ["A", "B"], "c-0": ["C"], "c-with-foreign": ["C", "X"]}
FOLDS = {"A": 0, "B": 1, "C": 2}


def test_a_synthetic_case_trains_only_where_its_source_and_its_donor_train():
    splits = splits_of(REAL, SYNTHETIC, FOLDS, 3)
    synthetic = [sorted(set(split.training) - REAL.keys()) for split in splits]
    assert synthetic == [["c-0"], ["a1-0", "c-0"], ["a1-0", "a1-with-b"]]


def test_only_real_cases_validate_and_each_of_them_once():
    splits = splits_of(REAL, SYNTHETIC, FOLDS, 3)
    assert sorted(name for split in splits for name in split.validation) == sorted(REAL)


def test_no_group_is_in_training_and_validation_of_a_fold():
    groups = {name: {group} for name, group in REAL.items()} | {name: set(parents) for name, parents in SYNTHETIC.items()}
    for split in splits_of(REAL, SYNTHETIC, FOLDS, 3):
        training = set().union(*(groups[name] for name in split.training))
        assert not training & set().union(*(groups[name] for name in split.validation))


def test_a_donor_of_an_unknown_group_never_trains():
    assert not [split for split in splits_of(REAL, SYNTHETIC, FOLDS, 3) if "c-with-foreign" in split.training]


def test_a_group_without_a_fold_always_trains():
    splits = splits_of({"a": "A", "v": "V"}, {"a-0": ["A"], "a-with-v": ["A", "V"]}, {"A": None, "V": 0}, 1)
    assert splits == (Split(("a", "a-0"), ("v",)),)


def test_folds_are_balanced_whole_groups_and_depend_on_the_names_only():
    groups = [f"p{i}" for i in range(30) for _ in range(1 + i % 3)]
    folds = assign_folds(groups, 5)
    assert folds == assign_folds(reversed(groups), 5)
    sizes = [sum(folds[group] == k for group in groups) for k in range(5)]
    assert max(sizes) - min(sizes) <= 1


def test_fewer_groups_than_folds_give_fewer_folds_and_one_group_is_refused():
    assert set(assign_folds(["a", "b", "c"], 5).values()) == {0, 1, 2}
    with pytest.raises(ValueError, match="two patients or more"):
        assign_folds(["a", "a"], 5)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([("a", 0), ("a", 1)], "'a' in fold 0, fold 1"),
        ([("a", 0), ("b", 2)], "without gaps"),
        ([("a", None), ("a", 0)], "in training, fold 0"),
    ],
)
def test_folds_that_split_a_group_or_have_gaps_are_refused(folds, message):
    with pytest.raises(ValueError, match=message):
        one_fold_each(folds)
