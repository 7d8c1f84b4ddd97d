from __future__ import annotations

import pickle
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, MapTransform, RandomizableTransform

import monai_diffaug
from monai_diffaug import (
    CachedRandomd,
    ControlNet,
    DiffusionLocalInpaint,
    DiffusionLocalInpaintd,
    Dynamic,
    InpaintOptions,
    LatentValidated,
    MedSAMMaskd,
    Noise,
    PlaceMaskd,
    Screen,
    SoftEdge,
    TextPromptd,
    Validator,
    presets,
    transform_hashing,
)
from monai_diffaug.edit.signature import Described, is_option_group, named_options, option_group


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DiffusionLocalInpaintd("image", guidance=3),
            "DiffusionLocalInpaintd: unexpected option 'guidance'; did you mean guidance_scale",
        ),
        (lambda: DiffusionLocalInpaint(steps=3), "unexpected option 'steps'; did you mean num_inference_steps?"),
        (lambda: LatentValidated("image", on_rejected="flag"), "unexpected option 'on_rejected'; did you mean on_reject?"),
        (lambda: Noise(roh=0.5), "Noise: unexpected option 'roh'; did you mean rho?"),
        (lambda: InpaintOptions(softedge=None), "InpaintOptions: unexpected option 'softedge'; did you mean soft_edge?"),
        (lambda: Validator(min_coverge=0.5), "did you mean min_coverage?"),
        (lambda: presets.emit_diff(modality="CT", guidance=3), "emit_diff: unexpected option 'guidance'; did you mean guidance_scale?"),
        (lambda: Dynamic(zzz=1), "Dynamic: unexpected option 'zzz'; its options are quantile, length"),
    ],
)
def test_a_misspelt_option_is_named_with_the_nearest_right_one(make: Any, message: str) -> None:
    with pytest.raises(TypeError) as raised:
        make()
    assert message in str(raised.value)


def test_a_missing_argument_is_reported_by_python_itself() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'keys'"):
        DiffusionLocalInpaintd()


@pytest.mark.parametrize("name", monai_diffaug.__all__)
def test_every_public_transform_and_option_class_names_its_options(name: str) -> None:
    public = getattr(monai_diffaug, name)
    if not isinstance(public, type):
        return
    assert not issubclass(public, (MapTransform, RandomizableTransform)) or issubclass(public, Described)
    if issubclass(public, Described) or is_option_group(public):
        with pytest.raises(TypeError, match=f"{name}: unexpected option 'no_such_option'"):
            public(no_such_option=1)


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (DiffusionLocalInpaintd("image"), "DiffusionLocalInpaintd(keys='image')"),
        (
            DiffusionLocalInpaintd("image", label_key="label", strength=1, options=InpaintOptions(noise=Noise(rho=0.5))),
            "DiffusionLocalInpaintd(keys='image', label_key='label', options=InpaintOptions(noise=Noise(rho=0.5)))",
        ),
        (InpaintOptions(), "InpaintOptions()"),
        (InpaintOptions(soft_edge=SoftEdge(2.0)), "InpaintOptions(soft_edge=SoftEdge(width_px_at_512=2.0))"),
        (InpaintOptions(control=ControlNet(scale=0.5)), "InpaintOptions(control=ControlNet(scale=0.5))"),
        (
            LatentValidated(["image"], inpaint=DiffusionLocalInpaintd("image"), screen=Screen(after=1.0), on_reject="flag"),
            "LatentValidated(keys=['image'], inpaint=DiffusionLocalInpaintd(keys='image'), on_reject='flag', screen=Screen(after=1.0))",
        ),
        (
            CachedRandomd(TextPromptd("p", modality="CT"), seed=1, id_key="id"),
            "CachedRandomd(transform=TextPromptd(keys='p', modality='CT'), seed=1, id_key='id')",
        ),
        (PlaceMaskd("i", bank=[np.ones((4, 4))]), "PlaceMaskd(keys='i', bank=[<ndarray (4, 4)>])"),
        (PlaceMaskd("i", bank=[np.ones((4, 4))] * 5), f"PlaceMaskd(keys='i', bank=[{'<ndarray (4, 4)>, ' * 4}...])"),
        (MedSAMMaskd("image", box=lambda index, image: None), "MedSAMMaskd(keys='image', box=<"),
        (DiffusionLocalInpaint(torch.nn.Linear(1, 1)), "DiffusionLocalInpaint(model=<Linear>)"),
    ],
)
def test_repr_shows_what_differs_from_the_defaults(made: object, shown: str) -> None:
    assert repr(made).startswith(shown) and (repr(made) == shown or shown.endswith("<"))


def test_repr_survives_copies_and_does_not_enter_the_hash() -> None:
    made = DiffusionLocalInpaintd("image", window=(0, 1))
    other = DiffusionLocalInpaintd(keys=["image"], window=[0, 1])
    assert repr(deepcopy(made)) == repr(pickle.loads(pickle.dumps(made))) == repr(made) != repr(other)
    assert transform_hashing([made]) == transform_hashing([other])


def test_a_class_with_its_own_repr_shows_itself_in_the_call() -> None:
    class Blur(Described):
        def __init__(self, *sizes: float, path: Path | None = None, table: dict[str, int] | None = None, **more: Any) -> None:
            pass

    class Sharpen(Blur):
        pass

    assert repr(Sharpen(1.0, path=Path("a"), table={"b": 1})) == "Sharpen(sizes=(1.0,), path='a', table={'b': 1})"
    assert repr(Blur(unknown=2)) == "Blur(more={'unknown': 2})"


def test_functions_and_dataclasses_are_checked_by_the_decorators() -> None:
    @named_options
    def add(first: int, second: int = 2) -> int:
        return first + second

    assert add(1) == 3 and add(first=2, second=3) == 5
    with pytest.raises(TypeError, match="add: unexpected option 'secnd'; did you mean second"):
        add(1, secnd=3)
    assert is_option_group(Noise) and not is_option_group(DiffusionLocalInpaint) and not is_option_group(Noise())
    assert replace(Noise(), scale=0.5) == Noise(scale=0.5) and option_group.__doc__


def test_option_groups_are_written_in_a_config() -> None:
    config = {
        "edit": {
            "_target_": "DiffusionLocalInpaintd",
            "keys": "image",
            "options": {
                "_target_": "monai_diffaug.InpaintOptions",
                "noise": {"_target_": "Noise", "source": "inverted", "scale": 0.3},
                "control": {"_target_": "monai_diffaug.ControlNet", "key": "edges"},
                "guidance_interval": [0.25, 0.75],
            },
        },
        "validate": {
            "_target_": "LatentValidated",
            "keys": "image",
            "inpaint": "@edit",
            "validator": {"_target_": "monai_diffaug.Validator", "rim": 0.05},
            "screen": {"_target_": "monai_diffaug.Screen", "min_dice": 0.5},
            "dynamic": {"_target_": "monai_diffaug.Dynamic", "length": 8},
        },
    }
    validate = ConfigParser(config).get_parsed_content("validate")
    options = InpaintOptions(noise=Noise(source="inverted", scale=0.3), control=ControlNet(key="edges"), guidance_interval=(0.25, 0.75))
    assert validate.inpaint.inpaint.settings.options == options.with_spec() and validate.inpaint.control_key == "edges"
    assert validate.options == Validator(rim=0.05) and validate.dynamic == Dynamic(length=8)
    assert validate.screen.min_dice == 0.5 and repr(Compose([validate]).transforms[0]).startswith("LatentValidated(keys='image', inpaint=")


def test_a_group_without_its_target_is_refused_with_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"noise must be Noise\(\.\.\.\), got .*rho.*; in a config write _target_: monai_diffaug.Noise"):
        InpaintOptions(noise={"rho": 0.5})
