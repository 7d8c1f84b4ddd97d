from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug import GridMismatchError
from monai_diffaug.edit.decode import Outcome
from monai_diffaug.edit.options import ControlNet, InpaintOptions, RepaintSettings
from monai_diffaug.edit.record import EMPTY_BECAUSE
from monai_diffaug.edit.request import Request, finish_request, open_request, prompt_text

IMAGE, MASK = torch.rand(1, 32, 40, 6) * 50, torch.zeros(1, 32, 40, 6)
MASK[:, 10:20, 10:20, 2:4] = 1


def request(**options: Any) -> Request:
    return Request(**{"image": IMAGE, "mask": MASK, "prompt": "cyst", "label": None, "control": None, "seed": 5, **options})


def test_only_the_slices_from_the_first_to_the_last_touched_one_are_opened() -> None:
    stack = open_request(request(), RepaintSettings(), 1)
    assert stack.slices.shape[0] == 2 and stack.slab.first == 2 and stack.indices == [0, 1]
    assert stack.prompt == ((1.0, "cyst"),) and stack.seed == 5


def test_a_volume_with_an_empty_mask_is_opened_without_a_look_at_its_values() -> None:
    stack = open_request(request(image=IMAGE * float("nan"), mask=MASK * 0), RepaintSettings(), 1)
    assert stack.indices == []
    with pytest.raises(ValueError, match="finite"):
        open_request(request(image=IMAGE * float("nan")), RepaintSettings(), 1)


@pytest.mark.parametrize("name", ["mask", "label", "control"])
def test_an_array_on_another_grid_is_refused_by_its_name(name: str) -> None:
    settings = RepaintSettings(options=InpaintOptions(control=ControlNet()))
    with pytest.raises(GridMismatchError, match=name):
        open_request(request(**{name: torch.zeros(1, 8, 8, 6)}), settings, 1)


def test_an_edit_has_the_type_of_its_input_and_a_painted_label() -> None:
    label = np.zeros((1, 32, 40, 6), np.uint8)
    changed = IMAGE + MASK
    edit = finish_request(request(image=IMAGE.numpy(), label=label), Outcome(changed, 2, ""), label_value=3, model="tiny")
    assert isinstance(edit.image, np.ndarray) and np.array_equal(edit.image, changed.numpy())
    assert edit.label.dtype == np.uint8 and np.array_equal(edit.label, 3 * MASK.numpy()) and not label.any()
    assert edit.record == {**edit.record, "applied": True, "n_slices": 2, "seed": 5, "prompt": "cyst", "model": "tiny", "tries": 1}


def test_without_an_outcome_the_input_comes_back_with_the_cause_of_an_empty_mask() -> None:
    mask = MetaTensor(MASK * 0, meta={EMPTY_BECAUSE: "no free place was found"})
    opened = request(mask=mask, label=MASK)
    edit = finish_request(opened, Outcome(None, 0, "empty mask"), label_value=1, model="tiny")
    assert edit.image is IMAGE and edit.label is MASK and not edit.record["applied"]
    assert edit.record["reason"] == "empty mask: no free place was found"


def test_a_prompt_of_any_kind_has_a_text_for_the_record() -> None:
    assert prompt_text([(1, "a"), (3, "b")]) == "1 * a + 3 * b" and prompt_text(5) == "5"
