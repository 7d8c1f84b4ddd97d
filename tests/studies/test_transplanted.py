"""The study of transplants on the pictures of a user."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from monai_diffaug.commands import evaluate
from monai_diffaug.edit.transplant_options import Blend
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.study_images import TRAINING, StudyData, StudyInputError
from monai_diffaug.studies.transplanted import Arm, Measured, arms_of, donors_of, main, measure_transplants, rows_of, table
from monai_diffaug.transforms.latent_validate import LatentValidate


def test_the_table_and_the_figures_of_each_arm(user_datalist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    assert main(["--data", str(user_datalist), "--n", "2", "--strengths", "0", "0.3", "--num-inference-steps", "3", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["pasted", "rim matched, soft join", "spread matched", "strength 0", "strength 0.3", "strength 0.3, detail not kept"]
    assert [line[:34].strip() for line in lines[2:]] == names
    (figures,) = (value for key, value in json.loads(out.read_text()).items() if key != "settings")
    assert len(figures["transplants"]) == 2 * len(names) and all(0.5 < row["likeness"]["value"] <= 1 for row in figures["rows"][:1])
    assert evaluate.STUDIES["transplant"][0] == "monai_diffaug.studies.transplanted"


def test_all_arms_have_the_same_places_and_donors_of_other_groups(user_datalist: Path) -> None:
    data = StudyData.open(user_datalist)
    donors = donors_of(data.images(TRAINING))
    assert {donor.origin.finding for donor in donors.donors} == {"benign nodule", "malignant nodule"}
    targets = [image for image in data.images() if image.is_normal][:2]
    arms = [Arm("one", Blend(), 0.0), Arm("same", Blend(), 0.0), Arm("raw", Blend(match="none", join="soft"), 0.0)]
    accept = LatentValidate(lambda crops: crops[:, :1] * 0 + 1, 0.0)
    measured = measure_transplants(targets, donors, arms, Painter(), accept)
    one, same, raw = ([each for each in measured if each.arm == arm.name] for arm in arms)
    assert [each.seam for each in one] == [each.seam for each in same] and len(one) == len(targets)
    assert (
        all(a.likeness <= b.likeness + 1e-3 for a, b in zip(one, raw, strict=True)) and np.isfinite([each.seam for each in measured]).all()
    )


def test_rows_are_medians_and_shares() -> None:
    rows = rows_of([Measured("a", group, seam, seam + 1, 0.5, group == 0) for group, seam in enumerate((1.0, 2.0, 9.0))])
    assert (rows[0].seam.value, rows[0].worst_seam.value, rows[0].likeness.value) == (2, 3, 0.5)
    assert rows[0].accepted.value == pytest.approx(1 / 3) and "2.00 [" in table(rows)


def test_without_strengths_above_zero_no_arm_needs_a_model() -> None:
    assert all(arm.strength == 0 for arm in arms_of([0.0]))


def test_wrong_input_is_named(user_datalist: Path) -> None:
    with pytest.raises(StudyInputError, match="--strengths in"):
        main(["--data", str(user_datalist), "--strengths", "1.5"])
    data = StudyData.open(user_datalist)
    with pytest.raises(StudyInputError, match="labelled lesions"):
        donors_of([image for image in data.images(TRAINING) if image.is_normal])
