from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from monai_diffaug.commands.arguments import WrongInputError
from monai_diffaug.commands.bundle import add_parser


def run(*arguments: str) -> int:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-q", "--quiet", action="store_true")
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(), common)
    options = parser.parse_args(["bundle", *arguments])
    return int(options.run(options))


def test_a_config_without_fault_gives_0_and_the_number_of_components(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("a: {_target_: Resized, keys: image, spatial_size: [8, 8]}\nb: {_target_: torch.nn.ReLU}\n")
    assert run("check", str(config)) == 0
    assert capsys.readouterr().out == "ok: 2 components\n"


def test_faults_give_2_and_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("a: {_target_: Resizd, keys: image}\nb: '@c'\n")
    assert run("check", "-q", str(config)) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{config}:1", f"{config}:2"]


def test_a_copied_bundle_can_be_checked_where_it_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("copy", "local_augmentation", str(tmp_path / "mine")) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mine'}\n"
    assert run("check", str(tmp_path / "mine" / "configs" / "train.yaml")) == 0


def test_a_copy_over_a_folder_or_of_an_unknown_bundle_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(WrongInputError, match="is there already"):
        run("copy", "local_augmentation", str(tmp_path))
    with pytest.raises(WrongInputError, match="there is no bundle 'global'"):
        run("copy", "global", str(tmp_path / "new"))
