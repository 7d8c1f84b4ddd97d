"""One test a kind of fault; each config is the smallest that has it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from monai_diffaug.bundles.check_config import check_bundle
from monai_diffaug.bundles.folders import bundle_folder
from monai_diffaug.errors import MissingExtraError

CONFIGS = bundle_folder("local_augmentation") / "configs"
IMPORTS = "imports:\n  - $import monai_diffaug\n"
LOAD = "      - {_target_: LoadImaged, keys: [image, label]}\n"
MASK = "      - {_target_: MedSAMMaskd, keys: image, label_key: label}\n"
PROMPT = "      - {_target_: TextPromptd, modality: ultrasound}\n"
INPAINT = "      - {_target_: DiffusionLocalInpaintd, keys: image}\n"


def faults_of(folder: Path, text: str, name: str = "train.yaml", *, make: bool = False) -> list[str]:
    """The printed faults, without the folder."""
    (folder / name).write_text(text, encoding="utf-8")
    faults = [str(fault).replace(f"{folder}/", "") for fault in check_bundle([folder / name], make=make).faults]
    assert all("\n" not in fault and "Traceback" not in fault for fault in faults)
    return faults


def chain(*steps: str, data: str = "") -> str:
    """A config whose data set has these transforms; the first stands in line 9."""
    head = f"{IMPORTS}dataset:\n  _target_: Dataset\n  data: {data or '$[]'}\n  transform:\n    _target_: Compose\n    transforms:\n"
    return head + "".join(steps)


@pytest.mark.parametrize("files", ["train.yaml", "train.yaml evaluate.yaml", "train.yaml multi_gpu_train.yaml", "inference.yaml"])
def test_the_configs_of_the_bundle_have_no_fault(files: str) -> None:
    report = check_bundle([CONFIGS / name for name in files.split()])
    assert report.faults == () and report.components > 10


@pytest.mark.parametrize("recipe", ["inpaint", "controlnet", "validator", "medsam", "semantic_controller"])
def test_the_training_configs_have_no_fault(recipe: str) -> None:
    configs = bundle_folder("fine_tuning") / "configs"
    for files in (["multi_gpu.yaml"], []):
        report = check_bundle([configs / name for name in (f"train_{recipe}.yaml", *files)])
        assert report.faults == () and report.components == 7


def test_a_wrong_option_of_a_training_config_is_named(tmp_path: Path) -> None:
    text = (bundle_folder("fine_tuning") / "configs" / "train_validator.yaml").read_text().replace("  seed:", "  sead:")
    (fault,) = faults_of(tmp_path, text)
    assert fault.endswith("settings::sead: unknown argument 'sead' of FineTuneSettings; did you mean seed?")


def test_an_unknown_class_is_named_with_the_nearest(tmp_path: Path) -> None:
    assert faults_of(tmp_path, f"{IMPORTS}a: {{_target_: DiffusionLocalInpantd, keys: image}}") == [
        "train.yaml:3: a::_target_: unknown class 'DiffusionLocalInpantd'; did you mean DiffusionLocalInpaintd?"
    ]


def test_an_unknown_class_in_a_full_path_is_looked_for_in_its_module(tmp_path: Path) -> None:
    assert faults_of(tmp_path, "a: {_target_: monai.transforms.LoadImagedd, keys: image}") == [
        "train.yaml:1: a::_target_: unknown class 'monai.transforms.LoadImagedd'; did you mean LoadImaged?"
    ]
    assert "there is no module monai.transfroms" in faults_of(tmp_path, "a: {_target_: monai.transfroms.LoadImaged, keys: image}")[0]


def test_a_short_name_of_this_package_needs_the_import(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, "a: {_target_: SoftMaskd, keys: mask}")
    assert fault == "train.yaml:1: a::_target_: the short name 'SoftMaskd' needs `- $import monai_diffaug` in imports"
    assert faults_of(tmp_path, "a: {_target_: monai_diffaug.transforms.soft_mask.SoftMaskd, keys: mask}") == []


def test_an_unknown_argument_is_named_with_the_nearest(tmp_path: Path) -> None:
    assert faults_of(tmp_path, f"{IMPORTS}a:\n  _target_: DiffusionLocalInpaintd\n  keys: image\n  guidance: 3") == [
        "train.yaml:6: a::guidance: unknown argument 'guidance' of DiffusionLocalInpaintd; did you mean guidance_scale?"
    ]


def test_a_missing_argument_is_named(tmp_path: Path) -> None:
    assert faults_of(tmp_path, f"{IMPORTS}a: {{_target_: TextPromptd, keys: prompt}}") == [
        "train.yaml:3: a: missing argument 'modality' of TextPromptd"
    ]


def test_a_reference_to_nothing_is_named_with_the_nearest(tmp_path: Path) -> None:
    text = "steps: 3\na: {_target_: Resized, keys: image, spatial_size: '@sizes'}\nsize: [8, 8]\nb: $@stepz + 1"
    assert faults_of(tmp_path, text) == [
        "train.yaml:2: a::spatial_size: @sizes is not defined; did you mean @size?",
        "train.yaml:4: b: @stepz is not defined; did you mean @steps?",
    ]


def test_a_wrong_option_is_told_in_the_words_of_the_constructor(tmp_path: Path) -> None:
    text = f"{IMPORTS}mode: maybe\na:\n  _target_: LatentValidated\n  keys: image\n  on_reject: '@mode'"
    assert faults_of(tmp_path, text) == [
        "train.yaml:4: a: LatentValidated: on_reject must be one of original, retry, flag, drop, got 'maybe'"
    ]


def test_an_option_behind_an_expression_is_checked_too(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, f"{IMPORTS}n: 2\na: {{_target_: MedSAMMaskd, keys: image, label_key: label, batch_size: $@n - 2}}")
    assert fault.endswith("a: MedSAMMaskd: batch_size must be 1 or more, got 0")


def test_a_fault_inside_a_chain_is_told_once_and_at_its_place(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, chain(LOAD, MASK, "      - {_target_: TextPromptd, modality: smell}\n", INPAINT))
    assert fault.startswith("train.yaml:11: dataset::transform::transforms::2: TextPromptd: ") and "smell" in fault


def test_all_faults_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = f"{IMPORTS}a: {{_target_: Resizd, keys: image}}\nb: '@c'\nd: {{_target_: Resized, keys: image}}\n"
    assert [fault.split(":")[1] for fault in faults_of(tmp_path, text)] == ["3", "4", "5"]


def test_a_mask_that_no_transform_writes_is_a_fault_when_the_files_are_loaded_here(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, chain(LOAD, PROMPT, INPAINT))
    assert "DiffusionLocalInpaintd: mask_key='mask' is written by no earlier transform" in fault and "MedSAMMaskd" in fault


def test_a_prompt_under_another_key_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, chain(LOAD, MASK, "      - {_target_: TextPromptd, keys: text, modality: ultrasound}\n", INPAINT))
    assert fault.endswith("prompt_key='prompt' is written by no earlier transform; TextPromptd writes 'text'")


def test_a_key_that_is_written_too_late_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, chain(LOAD, PROMPT, INPAINT, MASK))
    assert fault.endswith("mask_key='mask' is written only later, by MedSAMMaskd; move that before")


def test_a_key_that_was_removed_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, chain(LOAD, MASK, PROMPT, "      - {_target_: DeleteItemsd, keys: mask}\n", INPAINT))
    assert fault.endswith("mask_key='mask' was removed before by DeleteItemsd")


def test_keys_of_a_data_list_in_the_config_are_known(tmp_path: Path) -> None:
    assert faults_of(tmp_path, chain(MASK, PROMPT, INPAINT, data="[{image: a.png, label: b.png}]")) == []
    (fault,) = faults_of(tmp_path, chain(MASK, PROMPT, INPAINT, data="[{image: a.png, seg: b.png}]"))
    assert "MedSAMMaskd: label_key='label' is written by no earlier transform (the sample has image, seg)" in fault


def test_what_unknown_data_may_hold_is_no_fault(tmp_path: Path) -> None:
    assert faults_of(tmp_path, chain(INPAINT)) == []
    assert faults_of(tmp_path, chain(LOAD, MASK, INPAINT)) == []


def test_a_transform_that_may_write_any_key_silences_the_check(tmp_path: Path) -> None:
    assert faults_of(tmp_path, chain(LOAD, PROMPT, "      - {_target_: Lambda, func: '$lambda item: item'}\n", INPAINT)) == []
    copied = "      - {_target_: CopyItemsd, keys: label, names: mask}\n"
    assert faults_of(tmp_path, chain(LOAD, PROMPT, copied, INPAINT)) == []
    renamed = "      - {_target_: ForegroundMaskd, keys: image, new_key_prefix: m}\n"
    assert faults_of(tmp_path, chain(LOAD, PROMPT, renamed, INPAINT)) == []


def test_a_validator_that_cannot_restore_is_a_fault(tmp_path: Path) -> None:
    validate = "      - {_target_: LatentValidated, keys: image}\n"
    (fault,) = faults_of(tmp_path, chain(LOAD, MASK, PROMPT, INPAINT, validate))
    assert "LatentValidated: on_reject='original' needs keep_original: true" in fault
    with_originals = "      - {_target_: DiffusionLocalInpaintd, keys: image, keep_original: true}\n"
    assert faults_of(tmp_path, chain(LOAD, MASK, PROMPT, with_originals, validate)) == []
    assert "the record 'image_diffaug'" in faults_of(tmp_path, chain(LOAD, MASK, validate))[0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert str(check_bundle([tmp_path / "none.yaml"]).faults[0]) == f"{tmp_path}/none.yaml: file not found"
    assert faults_of(tmp_path, "net: '%other.yaml::net'") == ["train.yaml:1: net: file not found: other.yaml"]
    (fault,) = faults_of(tmp_path, f"{IMPORTS}a: {{_target_: DiffusionLocalInpaintd, keys: image, model: ./no/such/folder}}")
    assert "unknown inpainter source './no/such/folder'" in fault


def test_a_folder_in_place_of_a_config_is_called_one(tmp_path: Path) -> None:
    assert str(check_bundle([tmp_path]).faults[0]) == f"{tmp_path}: a folder; name its config, e.g. {tmp_path}/configs/train.yaml"


def test_a_syntax_error_is_told_with_its_line(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, "a: 1\nb: [1, 2\nc: 3\n")
    assert fault.startswith("train.yaml:3: YAML syntax error: ")
    (fault,) = faults_of(tmp_path, '{\n  "a": 1,\n  "b" 2\n}', "train.json")
    assert fault == "train.json:3: JSON syntax error: Expecting ':' delimiter (column 7)"
    assert faults_of(tmp_path, "- a\n- b\n") == ["train.yaml: a config is a mapping of ids, got list"]
    assert "not a config file" in faults_of(tmp_path, "a = 1", "train.toml")[0]


def test_a_json_config_is_checked_with_lines_too(tmp_path: Path) -> None:
    assert faults_of(tmp_path, '{\n\t"size": [8, 8],\n\t"a": "@sise"\n}', "train.json") == [
        "train.json:3: a: @sise is not defined; did you mean @size?"
    ]


def test_a_key_that_is_there_twice_is_a_fault(tmp_path: Path) -> None:
    assert faults_of(tmp_path, "a:\n  b: 1\n  b: 2\n") == ["train.yaml:3: a::b: the key is there twice; line 2 is lost"]


def test_a_name_that_was_not_imported_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, "a: $os.path.join('b', 'c')")
    assert fault == "train.yaml:1: a: name 'os' is not imported; add `- $import os` to imports"
    assert faults_of(tmp_path, "imports: [$import os]\na: $os.path.join('b', 'c')\nf: '$lambda x: [x + y for y in (1, 2)]'") == []


def test_a_syntax_error_in_an_expression_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, "a: $(1 + 2\n")
    assert fault.startswith("train.yaml:1: a: syntax error in the expression '$(1 + 2'")


def test_an_import_that_fails_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, "imports: [$import no_such_module_xyz]")
    assert "cannot import no_such_module_xyz" in fault


def test_a_bundles_own_modules_are_found_as_where_it_runs(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "own_network.py").write_text("class Network:\n    def __init__(self, width): ...\n")
    before = list(sys.path)
    text = "imports: [$import own_network]\nnet: {_target_: own_network.Network, width: 2, depth: 3}"
    assert faults_of(tmp_path / "configs", text) == []  # not imported
    assert faults_of(tmp_path / "configs", text, make=True) == [
        "train.yaml:2: net::depth: unknown argument 'depth' of Network; did you mean width?"
    ]
    assert sys.path == before
    missing = faults_of(tmp_path / "configs", "net: {_target_: no_such_module_xyz.Network}")
    assert missing == ["train.yaml:1: net::_target_: unknown class 'no_such_module_xyz.Network'; there is no module no_such_module_xyz"]


def test_a_variable_of_the_environment_where_the_bundle_runs_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    device = "imports: [$import os]\ndevice: $torch.device('cuda:' + os.environ['LOCAL_RANK'])\n"
    assert faults_of(tmp_path, f"{device}a: {{_target_: EnsureTyped, keys: image, device: '@device'}}") == []


def test_a_circle_of_references_is_a_fault(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, "a: {_target_: Resized, keys: image, spatial_size: '@b'}\nb: $@c\nc: $@b")
    assert len(faults) == 1 and "circular reference b -> c -> b" in faults[0]


def test_an_overlay_alone_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, "train::batch_size: 3")
    assert "comes after the file it overrides" in fault


def test_a_disabled_component_is_not_checked(tmp_path: Path) -> None:
    assert faults_of(tmp_path, "a: {_target_: NoSuchClass, _disabled_: true}") == []


def test_nothing_but_transforms_is_made_and_no_call_is_evaluated(tmp_path: Path) -> None:
    left = tmp_path / "left"
    text = (
        f"imports: ['$import pathlib']\nfile: {left}\n"
        "made: {_target_: pathlib.Path.touch, self: '$pathlib.Path(@file)'}\n"
        "run: ['$pathlib.Path(@file).touch()']\n"
        "a: {_target_: Resized, keys: image, spatial_size: '$pathlib.Path(@file).touch() or [8, 8]'}\n"
        "b: {_target_: Lambdad, keys: image, func: '@made'}\n"
    )
    assert faults_of(tmp_path, text) == [] and not left.exists()


def test_an_anchor_that_holds_itself_is_a_fault_and_no_endless_search(tmp_path: Path) -> None:
    assert faults_of(tmp_path, "a: &x\n  b: *x\n") == ["train.yaml: an anchor holds its own alias: such a config has no end"]
    assert faults_of(tmp_path, "a: &x [1, 2]\nb: [*x, *x]\n") == []


def test_yaml_that_monais_loader_cannot_read_is_a_fault(tmp_path: Path) -> None:
    merged = faults_of(tmp_path, "a: &x {_target_: LoadImaged, keys: image}\nb:\n  <<: *x\n  keys: label\n")
    assert merged == ["train.yaml:3: MONAI cannot read merge keys (<<); write the entries out, or use a reference"]
    assert faults_of(tmp_path, "a: 1\n2: b\n") == ["train.yaml:2: the id 2 is no text; put it in quotes"]
    assert faults_of(tmp_path, "a: &x {_target_: LoadImaged, keys: image}\nb: *x\nc: {1: x}\n'2': b\n") == []


def test_an_unknown_mode_is_named(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, "a: {_target_: torch.nn.Linear, _mode_: partial, in_features: 3}")
    assert fault == "train.yaml:1: a::_mode_: unknown mode 'partial'; use default, callable, debug"
    assert faults_of(tmp_path, "a: {_target_: torch.nn.Linear, _mode_: callable, in_features: 3}") == []


@pytest.mark.parametrize("name", ["train.yaml", "train.json"])
def test_without_pyyaml_the_extra_that_brings_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"monai_diffaug\[bundle\]"):
        faults_of(tmp_path, "{}", name)


def test_a_datalist_that_is_not_there_is_a_note_and_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = check_bundle([CONFIGS / "train.yaml"])
    assert report.faults == () and report.notes == ("data: no file ./datalist.json here; name yours by --data FILE",)
    (tmp_path / "datalist.json").write_text("{}")
    assert check_bundle([CONFIGS / "train.yaml"]).notes == ()


def test_a_label_that_is_read_before_it_is_loaded_is_a_fault(tmp_path: Path) -> None:
    place = "      - {_target_: PlaceMaskd, keys: image, label_key: label, region_key: organ}\n"
    image = "      - {_target_: LoadImaged, keys: image}\n"
    faults = faults_of(tmp_path, chain(image, place, PROMPT, INPAINT, LOAD))
    assert [fault.split(": ", 2)[2] for fault in faults] == [
        "PlaceMaskd: label_key='label' is a file name here: LoadImaged reads it only later; move that before",
        "PlaceMaskd: region_key='organ' is written by no earlier transform (the sample has image)",
    ]


def test_a_placed_mask_needs_its_prompt_before_and_is_written_for_the_edit(tmp_path: Path) -> None:
    place = "      - {_target_: PlaceMaskd, keys: image, prompt_key: prompt}\n"
    assert faults_of(tmp_path, chain(LOAD, PROMPT, place, INPAINT)) == []
    (fault,) = faults_of(tmp_path, chain(LOAD, place, PROMPT, INPAINT))
    assert fault.endswith("prompt_key='prompt' is written only later, by TextPromptd; move that before")
