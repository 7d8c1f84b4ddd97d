"""Option groups inside the transforms of a config."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_diffaug.bundles.check_config import check_bundle

HEAD = (
    "imports:\n  - $import monai_diffaug\na:\n  _target_: DiffusionLocalInpaintd\n  keys: image\n  options:\n    _target_: InpaintOptions\n"
)
NOISE = "    noise: {{_target_: monai_diffaug.Noise, {}}}\n"


def faults_of(folder: Path, text: str) -> list[str]:
    (folder / "train.yaml").write_text(text, encoding="utf-8")
    return [str(fault).replace(f"{folder}/", "") for fault in check_bundle([folder / "train.yaml"]).faults]


def test_a_transform_with_option_groups_has_no_fault(tmp_path: Path) -> None:
    control = "    control: {_target_: monai_diffaug.ControlNet, key: edges}\n"
    assert faults_of(tmp_path, HEAD + NOISE.format("source: inverted, scale: 0.5") + control + "    guidance_interval: [0.2, 0.8]") == []


def test_a_misspelt_option_in_a_group_is_named_with_the_nearest(tmp_path: Path) -> None:
    assert faults_of(tmp_path, HEAD + NOISE.format("roh: 0.5")) == [
        "train.yaml:8: a::options::noise::roh: unknown argument 'roh' of Noise; did you mean rho?"
    ]
    assert faults_of(tmp_path, HEAD + "    softedge: null") == [
        "train.yaml:8: a::options::softedge: unknown argument 'softedge' of InpaintOptions; did you mean soft_edge?"
    ]


def test_a_value_out_of_range_in_a_group_is_told_once_at_its_group(tmp_path: Path) -> None:
    assert faults_of(tmp_path, HEAD + NOISE.format("rho: 2.0")) == [
        "train.yaml:8: a::options::noise: Noise: noise rho must be in [0, 1], got 2.0"
    ]


def test_a_group_without_its_target_is_a_fault_with_what_to_write(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, HEAD + "    noise: {rho: 0.5}\n")
    assert fault.startswith("train.yaml:6: a::options: InpaintOptions: TypeError: noise must be Noise(...)")
    assert fault.endswith("in a config write _target_: monai_diffaug.Noise")


@pytest.mark.parametrize("group", ["ControlNet", "SemanticController"])
def test_the_source_of_a_control_network_is_checked(tmp_path: Path, group: str) -> None:
    (fault,) = faults_of(tmp_path, HEAD + f"    control: {{_target_: monai_diffaug.{group}, source: ./no_such_folder}}\n")
    assert fault.startswith("train.yaml:3: a: DiffusionLocalInpaintd: ") and "no_such_folder" in fault


def test_a_control_image_that_no_transform_writes_is_a_fault(tmp_path: Path) -> None:
    control = "{_target_: InpaintOptions, control: {_target_: monai_diffaug.ControlNet, key: edges}}"
    text = (
        "imports:\n  - $import monai_diffaug\na:\n  _target_: Compose\n  transforms:\n"
        "    - {_target_: LoadImaged, keys: [image, mask]}\n    - {_target_: TextPromptd, modality: CT}\n"
        f"    - {{_target_: DiffusionLocalInpaintd, keys: image, options: {control}}}\n"
    )
    (fault,) = faults_of(tmp_path, text)
    assert "DiffusionLocalInpaintd: control_key='edges' is written by no earlier transform" in fault
    edges = "    - {_target_: EdgeMapd, keys: image}\n    - {_target_: DiffusionLocal"
    assert faults_of(tmp_path, text.replace("    - {_target_: DiffusionLocal", edges)) == []


def test_a_short_name_that_means_a_class_of_monai_is_named(tmp_path: Path) -> None:
    assert faults_of(tmp_path, HEAD + "    control: {_target_: ControlNet, key: edges}\n") == [
        "train.yaml:8: a::options::control::_target_: the short name 'ControlNet' is a class of MONAI; write monai_diffaug.ControlNet"
    ]
