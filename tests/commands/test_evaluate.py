from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from monai_diffaug.commands.cli import main
from monai_diffaug.commands.evaluate import STUDIES

FEW = {
    "local-noise": ["--images", "1"],
    "seam": ["--images", "2"],
    "edges": ["--count", "2"],
    "prompts": ["--n", "2", "--classifier-steps", "1"],
    "validator": ["--n", "2"],
    "judge": ["--n", "1"],
    "erase": ["--n", "1", "--max-tries", "1"],
    "distribution": ["--n", "3"],
    "memorisation": ["--n", "2", "--copies", "1"],
    "semantic": ["--n", "2", "--repaint", "1", "--seeds", "1", "--training-crops", "2"],
    "latent-screen": ["--n", "3", "--n-retry", "1"],
    "continuity": ["--slices", "2", "--noise-rho", "0,1"],
    "downstream": ["--n-train", "6", "--seeds", "1", "--steps", "1", "--size-px", "32", "--arms", "none,copy_paste", "--synthetic", "2"],
}
PRINTED = {
    "local-noise": "random_moves_away_from_twin",
    "seam": "worst contour / original",
    "edges": "control on",
    "prompts": "classified as prompted",
    "validator": "no lesion at all",
    "judge": "AUC, real against flat patch",
    "erase": "nothing after",
    "distribution": "KID (± over halves)",
    "memorisation": "turned by 90 degrees",
    "semantic": "with - without",
    "latent-screen": "s per accepted",
    "continuity": "noise rho",
    "downstream": "| copy_paste | 6 | 2 | 1 |",
}
RANDOM = ("local-noise", "seam", "erase", "prompts", "distribution", "memorisation", "continuity")  # the others need fitting networks
ONE_STEP = (*RANDOM, "edges", "semantic", "latent-screen")


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_a_module_with_help(study, capsys) -> None:
    program = sys.argv
    assert main(["evaluate", study, "--help"]) == 0
    assert f"monai-diffaug evaluate {study}" in capsys.readouterr().out
    assert sys.argv is program


@pytest.mark.parametrize("study", [name for name in STUDIES if name != "speed"])
def test_a_study_without_data_says_in_one_line_what_it_needs(study, capsys) -> None:
    assert main(["evaluate", study]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"evaluate {study} needs --data DATALIST.json, a MONAI datalist with" in error


@pytest.mark.parametrize("study", FEW)
@pytest.mark.slow
def test_a_study_runs_on_a_users_datalist(study, user_datalist: Path, random_inpainter: str, tmp_path: Path, capsys) -> None:
    options = ["--model", random_inpainter] * (study in RANDOM) + ["--num-inference-steps", "1"] * (study in ONE_STEP)
    assert main(["evaluate", study, "--data", str(user_datalist), *FEW[study], *options, "--out", str(tmp_path / "out")]) == 0
    assert PRINTED[study] in capsys.readouterr().out
    if study != "downstream":
        figures = json.loads((tmp_path / "out").read_text())
        assert figures["settings"]["data"] == str(user_datalist) and len(figures) > 1


@pytest.mark.parametrize(
    ("study", "rows", "message"),
    [
        ("seam", [{"image": "a.png", "finding": "normal tissue"}], "needs labelled lesions"),
        ("validator", [{"image": "a.png", "label": "b.png"}], "needs normal images and labelled lesions"),
        ("continuity", [{"image": "a.png", "label": "b.png"}], "needs labelled 3-D volumes"),
        ("downstream", [{"image": "a.png", "label": "b.png"}], "cannot draw 40 labelled images"),
    ],
)
def test_a_datalist_that_lacks_something_is_refused_in_one_line(study, rows, message, tmp_path: Path, capsys) -> None:
    import numpy as np
    from PIL import Image

    for name in ("a.png", "b.png"):
        pixels = np.zeros((40, 40), np.uint8)
        pixels[10:25, 10:25] = 1
        Image.fromarray(pixels).save(tmp_path / name)
    words = {"modality": "ultrasound", "anatomy": "breast", "finding": "benign mass"}
    (tmp_path / "list.json").write_text(json.dumps({**words, "training": rows, "validation": rows}))
    assert main(["evaluate", study, "--data", str(tmp_path / "list.json")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_an_unknown_data_set_or_file_is_refused(user_datalist: Path, tmp_path: Path, capsys) -> None:
    assert main(["evaluate", "seam", "--data", str(user_datalist), "--dataset", "spleen"]) == 2
    assert "has no data set 'spleen'" in capsys.readouterr().err
    assert main(["evaluate", "seam", "--data", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_an_unknown_study_is_refused_with_the_names_of_all(capsys) -> None:
    assert main(["evaluate", "everything"]) == 2
    assert "downstream" in capsys.readouterr().err


def test_a_wrong_option_of_a_study_ends_with_its_exit_code(capsys) -> None:
    assert main(["evaluate", "seam", "--no-such-option"]) == 2
    assert "--no-such-option" in capsys.readouterr().err
