"""Faults of letter C, Bundle configs: a check runs nothing of a config, and ends in one line within seconds whatever the config holds."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import yaml

from monai_diffaug.bundles.check_config import check_bundle
from monai_diffaug.bundles.macros import MOST_ENTRIES
from monai_diffaug.bundles.syntax import MOST_BYTES, MOST_LEVELS, read_config
from monai_diffaug.bundles.trusted_packages import locate_trusted


def faults_of(folder: Path, text: str, name: str = "train.yaml", *, make: bool = False) -> list[str]:
    (folder / name).write_text(text, encoding="utf-8")
    return [str(fault).replace(f"{folder}/", "") for fault in check_bundle([folder / name], make=make).faults]


def module_that_leaves_a_mark(folder: Path, name: str = "bundle_helper") -> Path:
    (folder / f"{name}.py").write_text(f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\nclass Network: ...\n")
    return folder / "ran"


CONFIGS = {
    "an import": "imports: ['$import bundle_helper']",
    "an import of a name": "imports: ['$from bundle_helper import Network']",
    "a target": "net: {_target_: bundle_helper.Network}",
    "a reader by its name": "load: {_target_: LoadImaged, keys: image, reader: bundle_helper.Network}",
    "an expression": "a: $__import__('bundle_helper')",
    "an expression in an option": "a: {_target_: Resized, keys: image, spatial_size: \"$[len(str(__import__('bundle_helper')))]\"}",
    "an expression in an option of this package": "a: {_target_: monai_diffaug.SoftMaskd, keys: \"$str(__import__('bundle_helper'))\"}",
    "a function given to a function": "a: {_target_: Lambdad, keys: image, func: \"$max([1], key=lambda x: __import__('bundle_helper'))\"}",
    "a module of another name": "a: {_target_: bundle_helper}",
    "a debug switch": "a: {_target_: bundle_helper.Network, _mode_: debug}",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_check_imports_no_module_of_the_config(tmp_path, monkeypatch, name) -> None:
    mark = module_that_leaves_a_mark(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    faults_of(tmp_path, CONFIGS[name])
    assert not mark.exists() and "bundle_helper" not in sys.modules


def test_a_folder_with_the_name_of_a_package_is_not_imported_in_its_place(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("monai_diffaug.bundles.trusted_packages.PACKAGES", ("package_of_a_folder",))
    mark = module_that_leaves_a_mark(tmp_path, "package_of_a_folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.syspath_prepend(tmp_path)
    assert locate_trusted("package_of_a_folder.Network") is None and not mark.exists()


def test_make_is_the_opt_in_that_runs_it(tmp_path) -> None:
    mark = module_that_leaves_a_mark(tmp_path, "helper_that_is_run")
    assert faults_of(tmp_path, "imports: ['$import helper_that_is_run']", make=True) == [] and mark.exists()


def test_a_transform_of_monai_is_made_by_make_alone(tmp_path) -> None:
    text = "b: {_target_: Resized, keys: image, spatial_size: 8, size_mode: none}"
    assert faults_of(tmp_path, text) == []
    assert any("Resized" in fault for fault in faults_of(tmp_path, text, make=True))


def test_an_option_of_this_package_is_checked_behind_plain_arithmetic(tmp_path) -> None:
    head = "imports: ['$import monai_diffaug']\nn: 3\n"
    (fault,) = faults_of(tmp_path, head + "a: {_target_: LatentValidate, min_dice: $@n / 2}")
    assert fault.endswith("LatentValidate: min_dice must lie in [0, 1], got 1.5")
    assert faults_of(tmp_path, head + "a: {_target_: LatentValidate, min_dice: $(@n - 1) / 4}") == []


ALIASES = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 6))
MALFORMED = {
    "nested brackets.json": ('{"a": ' + "[" * 500 + "]" * 500 + "}", f"nested more than {MOST_LEVELS} levels"),
    "nested brackets.yaml": ("a: " + "[" * 500 + "]" * 500, f"nested more than {MOST_LEVELS} levels"),
    "nested lists.yaml": ("a:\n" + "- " * 500 + "1", f"nested more than {MOST_LEVELS} levels"),
    "aliases.yaml": (ALIASES, f"its aliases expand to 1234567 entries; the most is {MOST_ENTRIES}"),
    "macros.yaml": (
        "a0: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"a{k}: [{', '.join([chr(34) + '%a' + str(k - 1) + chr(34)] * 10)}]\n" for k in range(1, 6)),
        "its macros expand to",
    ),
    "a macro of itself.yaml": ("a: ['%b']\nb: {c: '%a'}", "a macro holds itself"),
    "large.yaml": ("a: 1\n" + "#" * MOST_BYTES, f"a config has at most {MOST_BYTES}"),
    "a date that is none.yaml": ("a: 2026-99-99", "cannot be read: month must be in 1..12"),
    "a tag.yaml": ("a: !!python/name:os.getcwd", "YAML syntax error: could not determine a constructor"),
    "no text.json": (json.dumps({"a": "b"})[:-2], "JSON syntax error"),
    "a control character.yaml": ("a: \x07", "YAML syntax error"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_config_is_one_line_within_two_seconds(tmp_path, name) -> None:
    text, reason = MALFORMED[name]
    start = time.process_time()
    (fault,) = faults_of(tmp_path, text, name)
    assert reason in fault and "\n" not in fault and time.process_time() - start < 2


@pytest.mark.parametrize("text", ["a: $list(range(10 ** 12))", "a: $'x' * 10 ** 12", "a: $9 ** 9 ** 9", "a: $[0] * 10 ** 12"])
def test_a_huge_value_is_never_computed(tmp_path, text) -> None:
    start = time.process_time()
    assert faults_of(tmp_path, text) == [] and time.process_time() - start < 2


def test_a_long_expression_is_a_fault_and_no_work_for_the_parser(tmp_path) -> None:
    (fault,) = faults_of(tmp_path, f"a: ${'+'.join(['1'] * 3000)}")
    assert "syntax error in the expression" in fault and len(fault) < 400


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_reading_the_largest_config_takes_less_than_two_seconds(tmp_path, monkeypatch, loader) -> None:
    monkeypatch.setattr("monai_diffaug.bundles.syntax._loader", lambda: getattr(yaml, loader))
    text = "".join(f"a{k}: {{b: [1, 2, 3], c: text}}\n" for k in range(10**4))[: MOST_BYTES - 100]
    (tmp_path / "train.yaml").write_text(text[: text.rindex("\n") + 1])
    start = time.process_time()
    assert read_config(tmp_path / "train.yaml") == [] and time.process_time() - start < 4  # 2 s, on a machine with other work
