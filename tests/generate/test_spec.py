"""The spec: strict keys with the nearest name, ranges, and a hash of all that the results depend on."""

from pathlib import Path
from typing import Any

import pytest

from monai_diffaug.generate.spec import SpecError, read_spec, spec_of_config
from tests.generate.tiny_runs import PIPELINE, SPEC, write_spec

PRESET = {"preset": "diffaug", "modality": "ultrasound", "finding": "benign mass"}


def test_yaml_and_json_give_one_spec(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(
        "copies: 2\nnormal: 0.25\ndefinitions: {steps: 3}\n"
        "pipeline: {preset: diffaug, modality: ultrasound, num_inference_steps: '@definitions::steps'}\n"
    )
    spec = read_spec(tmp_path / "spec.yaml")
    (tmp_path / "spec.json").write_text(
        '{"copies": 2, "normal": 0.25, "definitions": {"steps": 3}, "pipeline": {"preset": "diffaug", "modality": "ultrasound", '
        '"num_inference_steps": "@definitions::steps"}}'
    )
    assert spec == read_spec(tmp_path / "spec.json") and (spec.copies, spec.seed, spec.threads, spec.format) == (2, 0, 1, "folder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"copys": 3}, "unknown key 'copys'; did you mean copies?"),
        ({"colour": 3}, "unknown key 'colour'; the keys are pipeline, copies"),
        ({"copies": 0}, "copies must be a whole number from 1 to 1000, got 0"),
        ({"copies": 1.5}, "copies must be a whole number"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"threads": True}, "threads must be a whole number"),
        ({"normal": 1.2}, r"normal is the share of controls and must be in \[0, 1\], got 1.2"),
        ({"format": "nnUnet"}, "format must be one of folder, nnunet"),
        ({"keep_filtered": "yes"}, "keep_filtered must be true or false"),
        ({"pipeline": []}, "pipeline must be a list of transforms"),
        ({"pipeline": {"preset": "difaug"}}, "unknown preset 'difaug'; did you mean diffaug?"),
        ({"pipeline": {**PRESET, "max_trys": 2}}, "unexpected option 'max_trys'; did you mean max_tries"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_of_config({**SPEC, **changes})


def test_a_spec_without_a_pipeline_is_refused() -> None:
    with pytest.raises(SpecError, match="no pipeline; give a list of transforms"):
        spec_of_config({"copies": 2})


def test_faults_of_transforms_are_named_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("copies: 1\npipeline:\n- _target_: monai_diffaug.PlaceMaskd\n  keyz: image\n")
    with pytest.raises(SpecError, match=r"spec.yaml:4: pipeline::0::keyz: unknown argument 'keyz' of PlaceMaskd; did you mean keys\?"):
        read_spec(tmp_path / "spec.yaml")
    with pytest.raises(SpecError, match="spec.json: copies must be"):
        read_spec(write_spec(tmp_path / "spec.json", copies=0))


def test_the_hash_covers_all_but_the_format() -> None:
    spec = spec_of_config(SPEC)
    assert spec.sha256 == spec_of_config({**SPEC, "format": "nnunet"}).sha256
    changes: list[dict[str, Any]] = [
        {"seed": 6},
        {"copies": 3},
        {"normal": 0.5},
        {"threads": 2},
        {"keep_filtered": True},
        {"pipeline": PRESET},
    ]
    others = {spec_of_config({**SPEC, **change}).sha256 for change in changes}
    assert len(others | {spec.sha256}) == len(changes) + 1


def test_plain_values_make_the_same_spec() -> None:
    spec = spec_of_config({**SPEC, "pipeline": PIPELINE})
    assert type(spec)(**spec.to_plain()) == spec
