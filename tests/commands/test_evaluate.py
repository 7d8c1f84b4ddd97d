from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest

from monai_diffaug.commands.cli import main
from monai_diffaug.commands.evaluate import STUDIES


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_a_module_with_help(study, capsys) -> None:
    before = sys.argv
    assert find_spec(STUDIES[study][0]) is not None
    assert main(["evaluate", study, "--help"]) == 0
    assert f"monai-diffaug evaluate {study}" in capsys.readouterr().out
    assert sys.argv is before


def test_an_unknown_study_is_refused_with_the_names_of_all(capsys) -> None:
    assert main(["evaluate", "everything"]) == 2
    assert "downstream" in capsys.readouterr().err


def test_a_wrong_option_of_a_study_ends_with_its_exit_code(capsys) -> None:
    assert main(["evaluate", "seam", "--no-such-option"]) == 2
    assert "--no-such-option" in capsys.readouterr().err
