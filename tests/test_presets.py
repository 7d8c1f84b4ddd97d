from __future__ import annotations

import pickle
import warnings

import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import list_data_collate
from monai.transforms import Compose

from monai_diffaug import (
    ControlNet,
    DonorBank,
    LatentValidate,
    LesionBank,
    LesionNovelty,
    PlaceMaskd,
    Region,
    SemanticController,
    SoftEdge,
    Validator,
    presets,
)
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.presets.preset_keys import WholeImaged
from monai_diffaug.transforms.text_prompt import TextPromptd


def sample() -> dict[str, torch.Tensor]:
    image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) * 80 + 60
    label = torch.zeros(1, 64, 64)
    label[:, 24:38, 26:42] = 1
    image[label > 0] -= 50
    return {"image": image, "label": label}


@pytest.fixture(scope="module")
def controlnet(random_inpainter: str) -> object:
    from monai_diffaug.models.controlnet import build_controlnet

    model = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    return build_controlnet(model.unet, model.factor)


@pytest.fixture(scope="module")
def semantic_controller(random_inpainter: str) -> object:
    from monai_diffaug.models.semantic_controller import build_semantic_model

    model = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    return build_semantic_model(model)


def run(transform: Compose, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    before = {key: value.clone() for key, value in data.items()}
    assert len(pickle.dumps(transform)) < 100_000
    result = transform.set_random_state(0)(data)
    assert all(torch.equal(data[key], before[key]) for key in before)
    return result


def test_mila_tmgdiff_repaints_inside_the_outline_of_the_labelled_lesion(random_inpainter) -> None:
    preset = presets.mila_tmgdiff(modality="ultrasound", finding="benign mass", model=random_inpainter, num_inference_steps=2, prob=1.0)
    result = run(preset, sample())
    changed = result["image"] != sample()["image"]
    assert result["image_diffaug"]["applied"] and changed.any() and not changed[:, :12].any()
    assert result["image_diffaug"]["prompt"].startswith("ultrasound of breast")
    assert torch.equal(result["label"], sample()["label"]) and not torch.equal(result["mask"].float(), result["label"].float())


def test_diffaug_paints_clear_of_the_lesion_that_is_there_and_counts_its_tries(random_inpainter) -> None:
    preset = presets.diffaug(
        modality="ultrasound",
        model=random_inpainter,
        validator=lambda images: torch.zeros(len(images), 1, 128, 128),
        num_inference_steps=1,
        prob=1.0,
    )
    result = run(preset, sample())
    assert not (result["mask"].bool() & (sample()["label"] > 0)).any() and result["mask"].any()
    assert result["image_diffaug"]["tries"] == 3 and not result["image_diffaug"]["accepted"]
    assert torch.equal(result["image"], sample()["image"]) and torch.equal(result["label"], sample()["label"])


def test_emit_diff_repaints_the_whole_slice_and_keeps_the_label(random_inpainter, controlnet) -> None:
    preset = presets.emit_diff(
        modality="ultrasound", model=random_inpainter, control=ControlNet(controlnet), num_inference_steps=2, prob=1.0
    )
    result = run(preset, sample())
    assert (result["image"] != sample()["image"]).float().mean() > 0.9
    assert torch.equal(result["label"], sample()["label"]) and "edges" not in result


def test_emit_diff_runs_at_the_given_strength(random_inpainter, controlnet) -> None:
    moved = []
    for strength in (0.2, 1.0):
        preset = presets.emit_diff(
            modality="ultrasound",
            model=random_inpainter,
            control=ControlNet(controlnet),
            num_inference_steps=5,
            strength=strength,
            prob=1.0,
        )
        assert preset.transforms[3].inpaint.settings.strength == strength
        moved.append(float((run(preset, sample())["image"] - sample()["image"]).abs().mean()))
    assert moved[0] != moved[1]


@pytest.mark.parametrize("preset", [presets.mila_tmgdiff, presets.medsoft_diffusion])
def test_min_iou_reaches_medsam(preset) -> None:
    assert preset(modality="MRI", min_iou=0.2).transforms[0].masker.gate.min_iou == 0.2
    assert preset(modality="MRI").transforms[0].masker.gate.min_iou == 0.5


def test_emit_diff_repaints_whole_slices_at_their_own_resolution(random_inpainter, controlnet) -> None:
    larger = {key: value.repeat_interleave(2, -1).repeat_interleave(2, -2) for key, value in sample().items()}  # than the model's 64 px
    results = []
    for whole in (False, True):
        options = {
            "model": random_inpainter,
            "control": ControlNet(controlnet),
            "num_inference_steps": 2,
            "region": Region(whole_slice=whole),
            "prob": 1.0,
        }
        results.append(run(presets.emit_diff(modality="ultrasound", **options), larger))
    assert all(result["image_diffaug"]["applied"] for result in results)
    assert results[0]["image"].shape == results[1]["image"].shape and not torch.equal(results[0]["image"], results[1]["image"])


def test_diffaug_places_by_the_transform_that_it_is_given(random_inpainter) -> None:
    place = PlaceMaskd("image", label_key="label", size_range=(0.25, 0.25))
    options = {"modality": "ultrasound", "model": random_inpainter, "num_inference_steps": 1, "max_tries": 1, "prob": 1.0}
    rows, columns = run(presets.diffaug(place=place, **options), sample())["mask"][0].nonzero().T
    assert 12 < max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) + 1 <= 16


def test_diffaug_lets_the_embedded_judge_decide_only_where_it_accepts_most_real_lesions() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"modality": "US"}, {"modality": "CT", "validator": "tiny"}, {"modality": "MRI", "screen": "tiny"}):
            assert presets.diffaug(**options).transforms[-1].on_reject == "retry"
    with pytest.warns(UserWarning, match=r"accepts only 22% of 27 real lesions in CT.*undoes no edit here"):
        assert presets.diffaug(modality="CT").transforms[-1].on_reject == "flag"


def test_diffaug_takes_the_training_lesions_and_refuses_their_copies(random_inpainter) -> None:
    lesions = [{"image": torch.rand(1, 64, 64), "label": sample()["label"]} for _ in range(3)]
    preset = presets.diffaug(
        modality="ultrasound",
        model=random_inpainter,
        validator=LatentValidate(lambda images: torch.ones(len(images), 1, 128, 128), min_dice=0.0),
        num_inference_steps=1,
        novelty=LesionNovelty(LesionBank.of(lesions), limit=1e-6),
        prob=1.0,
    )
    assert "copy of training lesion" in preset.set_random_state(0)(sample())["image_diffaug"]["reason"]


def test_diffaug_screens_candidates_by_their_latents(random_inpainter) -> None:
    preset = presets.diffaug(
        modality="ultrasound",
        model=random_inpainter,
        validator=lambda images: torch.ones(len(images), 1, 128, 128),
        screen=lambda latents: torch.full((len(latents), 1, *latents.shape[-2:]), -9.0),
        num_inference_steps=4,
        prob=1.0,
    )
    assert preset.set_random_state(0)(sample())["image_diffaug"]["reason"].startswith("refused before decoding")


def test_medsoft_diffusion_repaints_with_a_soft_edge(random_inpainter, semantic_controller) -> None:
    preset = presets.medsoft_diffusion(
        modality="ultrasound",
        model=random_inpainter,
        control=SemanticController(semantic_controller),
        num_inference_steps=2,
        soft_edge=SoftEdge(width_mm=2.0),
        prob=1.0,
    )
    result = run(preset, sample())
    changed = (result["image"] != sample()["image"])[0]
    assert result["image_diffaug"]["applied"] and changed.sum() > result["mask"].sum() and not changed[:8].any()


@pytest.mark.parametrize("preset", [presets.mila_tmgdiff, presets.diffaug, presets.emit_diff, presets.medsoft_diffusion])
def test_a_label_under_the_name_of_an_item_that_a_preset_writes_is_refused_before_it_is_lost(preset) -> None:
    with pytest.raises(ValueError, match="the preset writes 'mask' itself.*CopyItemsd"):
        preset(label_key="mask", modality="CT")
    with pytest.raises(ValueError, match="'prompt'"):
        preset("prompt", modality="CT")


def test_presets_can_follow_each_other(random_inpainter, controlnet) -> None:
    options = {"modality": "ultrasound", "model": random_inpainter, "num_inference_steps": 1}
    both = Compose(
        [presets.mila_tmgdiff(min_iou=0.0, prob=1.0, **options), presets.emit_diff(control=ControlNet(controlnet), prob=1.0, **options)]
    )
    result = run(both, sample())
    assert result["image_diffaug"]["applied"] and result["mask"].all() and torch.equal(result["label"], sample()["label"])


def test_the_whole_image_as_mask_has_the_type_of_its_label() -> None:
    for label in (sample()["label"], MetaTensor(sample()["label"] - 1), sample()["label"].numpy()):
        mask = WholeImaged("label")({"label": label})["mask"]
        assert type(mask) is type(label) and mask.shape == label.shape and bool((mask == 1).all())


@pytest.mark.parametrize("preset", [presets.mila_tmgdiff, presets.diffaug, presets.emit_diff, presets.medsoft_diffusion])
def test_the_anatomy_that_was_named_is_the_one_in_the_prompt(preset) -> None:
    prompt = next(t for t in preset(modality="CT", finding="hypodense lesion", anatomy="spleen").transforms if isinstance(t, TextPromptd))
    for seed in range(8):
        prompt.set_random_state(seed)
        assert prompt({})["prompt"].startswith("CT of spleen, hypodense lesion")


@pytest.mark.parametrize("preset", [presets.mila_tmgdiff, presets.diffaug, presets.emit_diff, presets.medsoft_diffusion])
def test_a_plane_that_does_not_exist_is_refused(preset) -> None:
    with pytest.raises(ValueError, match="oblique"):
        preset(modality="MRI", finding="glioma", plane="oblique")


def test_diffaug_places_and_repaints_in_the_plane_that_was_named(random_inpainter) -> None:
    volume = {"image": torch.rand(1, 16, 40, 40, generator=torch.Generator().manual_seed(0)) + 1, "label": torch.zeros(1, 16, 40, 40)}
    place = PlaceMaskd("image", label_key="label", plane="sagittal", depth_mm=0)
    result = run(presets.diffaug(modality="MRI", plane="sagittal", place=place, max_tries=1, model=random_inpainter, prob=1.0), volume)
    assert int((result["mask"] > 0).flatten(2).any(dim=2).sum()) == 1
    assert result["image_diffaug"]["n_slices"] == 1


def finds(found: bool) -> object:
    """A validator that finds a lesion everywhere, or nowhere."""
    return lambda images: torch.full((len(images), 1, 128, 128), float(found))


def test_controls_erase_lesions_and_repaint_normal_tissue_where_there_is_none(random_inpainter) -> None:
    preset = presets.controls(
        modality="ultrasound", anatomy="breast", model=random_inpainter, validator=finds(False), num_inference_steps=1, prob=1.0
    )
    with_lesion = run(preset, sample())
    normal = run(preset, {**sample(), "label": torch.zeros(1, 64, 64)})
    for result in (with_lesion, normal):
        assert result["image_diffaug"]["applied"] and not result["label"].any() and result["mask"].any()
        assert result["image_diffaug"]["prompt"] == "ultrasound of breast, normal tissue"
    assert (with_lesion["mask"][sample()["label"] > 0] == 1).all() and not torch.equal(normal["mask"], with_lesion["mask"])


def test_controls_restore_what_the_validator_still_finds(random_inpainter) -> None:
    preset = presets.controls(
        modality="ultrasound", anatomy="breast", model=random_inpainter, validator=finds(True), num_inference_steps=1, prob=1.0
    )
    result = run(preset, sample())
    assert torch.equal(result["image"], sample()["image"]) and torch.equal(result["label"], sample()["label"])
    assert not result["image_diffaug"]["accepted"] and result["image_diffaug"]["tries"] == 3


def test_controls_of_normal_images_lie_in_the_organ(random_inpainter) -> None:
    label = torch.zeros(1, 64, 64)
    label[:, 30:60, 8:40] = 1
    preset = presets.controls(
        modality="CT", anatomy="abdomen", keep_values=[1], model=random_inpainter, validator=None, num_inference_steps=1, prob=1.0
    )
    result = run(preset, {**sample(), "label": label})
    assert result["mask"].any() and (label[result["mask"] > 0] == 1).all() and torch.equal(result["label"], label)


def test_relocate_clears_the_old_place_and_paints_at_another(random_inpainter) -> None:
    preset = presets.relocate(
        modality="ultrasound", anatomy="breast", model=random_inpainter, validator=judge_of_both(), num_inference_steps=1, prob=1.0
    )
    result = run(preset, sample())
    old = sample()["label"] > 0
    assert result["image_erased"]["applied"] and result["image_diffaug"]["applied"]
    assert result["label"].any() and not result["label"][old].any() and torch.equal(result["label"] > 0, result["mask"] > 0)
    assert (result["image"][old] != sample()["image"][old]).all()
    assert "normal tissue" in result["image_erased"]["prompt"] and "normal tissue" not in result["image_diffaug"]["prompt"]


def judge_of_both() -> LatentValidate:
    """Accepts every erased lesion (all of the mask may be predicted) and every painted one."""
    return LatentValidate(finds(True), min_dice=0.0, options=Validator(max_false_positive=99.0))


@pytest.mark.parametrize("keep_values", [(), (2,)])
def test_relocate_restores_the_image_if_nothing_is_painted_elsewhere(random_inpainter, keep_values) -> None:
    data = sample()
    data["label"][data["label"] == 0] = 3  # no free place
    preset = presets.relocate(
        modality="MRI",
        anatomy="brain",
        keep_values=keep_values,
        model=random_inpainter,
        validator=judge_of_both(),
        num_inference_steps=1,
        prob=1.0,
    )
    result = run(preset, data)
    assert torch.equal(result["image"], data["image"]) and torch.equal(result["label"], data["label"]) and not result["mask"].any()
    assert not result["image_erased"]["applied"] and result["image_erased"]["reason"].startswith("no lesion was painted elsewhere")
    assert "empty mask" in result["image_diffaug"]["reason"]


def test_relocate_has_the_same_keys_and_types_whether_it_was_triggered_or_not(random_inpainter) -> None:
    results = []
    for prob, validator in ((0.0, judge_of_both()), (1.0, judge_of_both()), (1.0, finds(True))):
        options = {"validator": validator, "num_inference_steps": 1, "max_tries": 1, "prob": prob}
        results.append(run(presets.relocate(modality="MRI", anatomy="brain", model=random_inpainter, **options), sample()))
    assert [each["image_diffaug"]["applied"] for each in results] == [False, True, False]
    assert results[2]["image_diffaug"]["reason"].startswith("no lesion was erased: the validator still finds")
    list_data_collate(results)


def test_relocate_stays_in_the_organ(random_inpainter) -> None:
    data = sample()
    data["label"][:, 20:60, 8:44] = torch.where(data["label"] > 0, 2.0, 1.0)[:, 20:60, 8:44]
    preset = presets.relocate(
        modality="CT",
        anatomy="abdomen",
        finding="hepatic cyst",
        label_value=2,
        keep_values=[1],
        background_value=1,
        model=random_inpainter,
        validator=judge_of_both(),
        num_inference_steps=1,
        prob=1.0,
    )
    result = run(preset, data)
    assert (data["label"][result["mask"] > 0] == 1).all() and (result["label"] == 2).any()
    assert torch.equal(result["label"] > 0, data["label"] > 0)


def test_relocate_transplants_when_it_is_given_donors(random_inpainter) -> None:
    donor = {key: value.flip(-1) for key, value in sample().items()}
    results = []
    for prob in (1.0, 0.0):
        options = {"bank": DonorBank.of([donor]), "model": random_inpainter, "validator": judge_of_both(), "prob": prob}
        preset = presets.relocate(modality="ultrasound", anatomy="breast", **options)
        results.append(preset.set_random_state(0)(sample()))
    result, old = results[0], sample()["label"] > 0
    assert result["image_erased"]["applied"] and result["image_diffaug"]["applied"] and result["image_diffaug"]["donor"] == "0#1"
    assert result["label"].any() and not result["label"][old].any()
    assert not results[1]["image_diffaug"]["applied"] and torch.equal(results[1]["label"], sample()["label"])
    list_data_collate(results)
