"""The transforms of a spec: controls that follow from the pipeline, and transforms that would make jobs depend on each other."""

import pytest

from monai_diffaug import DiffusionLocalInpaintd, LatentValidated
from monai_diffaug.generate.pipeline import build_pipelines, finding_of, model_place, require_keys, steps_of
from monai_diffaug.generate.spec import GenerateSpec, SpecError, spec_of_config
from tests.generate.tiny_runs import PAINT, PIPELINE, PLACE, SPEC, TEXT

PRESET = {"preset": "diffaug", "modality": "ultrasound", "anatomy": "breast", "finding": "benign mass", "num_inference_steps": 1}


def spec(**changes: object) -> GenerateSpec:
    return spec_of_config({**SPEC, **changes})


def test_controls_have_the_places_of_the_lesions_no_label_and_no_judge() -> None:
    pipelines = build_pipelines(spec(pipeline=PRESET, normal=0.5))
    lesion, control = pipelines.by_kind["lesion"], pipelines.by_kind["control"]
    assert lesion.label_value == 1 and lesion.record_keys == control.record_keys == ("image_diffaug",)
    assert any(isinstance(step, LatentValidated) and step.prob == 1 for step in steps_of(lesion.chain))
    assert not any(isinstance(step, LatentValidated) for step in steps_of(control.chain))
    assert [step.label_key for step in steps_of(control.chain) if isinstance(step, DiffusionLocalInpaintd)] == [None]
    assert [step.label_key for step in steps_of(lesion.chain) if isinstance(step, DiffusionLocalInpaintd)] == ["label"]
    prompts = {control.chain.transforms[1].set_random_state(seed)({})["prompt"] for seed in range(5)}
    assert prompts == {"ultrasound of breast, normal tissue"}


def test_kinds_that_no_job_has_are_not_built() -> None:
    assert [*build_pipelines(spec()).by_kind] == ["lesion"] and [*build_pipelines(spec(normal=1.0)).by_kind] == ["control"]


def test_a_pipeline_of_the_users_makes_the_controls() -> None:
    control = {"preset": "controls", "modality": "ultrasound", "anatomy": "breast"}
    assert build_pipelines(spec(normal=0.5, control=control)).by_kind["control"].mask_key == "mask"


def test_a_pipeline_without_places_makes_no_controls_by_itself() -> None:
    mila = {"preset": "mila_tmgdiff", "modality": "ultrasound", "finding": "benign mass"}
    assert build_pipelines(spec(pipeline=mila)).by_kind["lesion"].label_value == 0
    with pytest.raises(SpecError, match="normal: the pipeline has no PlaceMaskd"):
        spec(pipeline=mila, normal=0.1)


def test_transforms_with_a_memory_are_refused() -> None:
    judge = {
        "_target_": "monai_diffaug.LatentValidated",
        "keys": "image",
        "inpaint": PAINT,
        "dynamic": {"_target_": "monai_diffaug.Dynamic"},
    }
    with pytest.raises(SpecError, match="dynamic= depends on the order of the jobs"):
        spec(pipeline=[*PIPELINE[:2], judge])
    cached = {"_target_": "monai_diffaug.CachedRandomd", "transform": PLACE, "id_key": "id", "seed": 0}
    with pytest.raises(SpecError, match="CachedRandomd keeps results between samples"):
        spec(pipeline=[cached, *PIPELINE[1:]])


def test_a_pipeline_without_an_edit_of_the_image_is_refused() -> None:
    with pytest.raises(SpecError, match='without an edit of "image"'):
        spec(pipeline=PIPELINE[:2])
    with pytest.raises(SpecError, match='without an edit of "image"'):
        spec(pipeline=[*PIPELINE[:2], {**PAINT, "keys": "picture"}])
    with pytest.raises(SpecError, match="is a live object"):
        spec(pipeline=[*PIPELINE[:2], {**PAINT, "model": "$__import__('torch').nn.Conv2d(1, 1, 1)"}])


def test_keys_come_from_the_entries_or_from_a_transform_before() -> None:
    region = build_pipelines(spec(pipeline=[*PIPELINE[:2], {**PAINT, "mask_key": "region"}]))
    with pytest.raises(SpecError, match="DiffusionLocalInpaintd: mask_key='region' is written by no earlier transform"):
        require_keys(region, ())
    caption = build_pipelines(spec(pipeline=[PLACE, {**PAINT, "prompt_key": "caption"}]))
    require_keys(caption, ("caption",))
    with pytest.raises(SpecError, match="prompt_key='caption' is written by no earlier"):
        require_keys(caption, ("modality",))


def test_rejected_results_are_kept_where_the_spec_says_so() -> None:
    for keep, fate in ((False, "original"), (True, "flag")):
        chain = build_pipelines(spec(pipeline=PRESET, keep_filtered=keep)).by_kind["lesion"].chain
        assert [step.options.on_exhausted for step in steps_of(chain) if isinstance(step, LatentValidated)] == [fate]


def test_the_finding_is_the_longest_one_that_the_prompt_names() -> None:
    chain = build_pipelines(spec(pipeline=[PLACE, {**TEXT, "finding": ["mass", "benign mass"]}, PAINT])).by_kind["lesion"].chain
    assert finding_of(chain, "ultrasound of breast, benign mass, round") == "benign mass" and finding_of(chain, "a scan") == ""


def test_models_are_those_of_all_transforms() -> None:
    models = build_pipelines(spec(pipeline=PRESET)).models
    assert set(models) == {"inpainter", "validator"}
    assert all((place := model_place(model)) is not None and place.is_dir() for model in models.values())
