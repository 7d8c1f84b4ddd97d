from __future__ import annotations

from typing import Any

import pytest

from monai_diffaug.edit.validation_options import Dynamic, Screen, Validator


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (Validator, {"min_coverage": -0.1}),
        (Validator, {"min_change": 1.1}),
        (Validator, {"min_texture": -0.1}),
        (Validator, {"max_false_positive": -1}),
        (Validator, {"box_margin": -1}),
        (Validator, {"rim": -0.1}),
        (Validator, {"batch_size": 0}),
        (Validator, {"size_px": 7}),
        (Validator, {"min_side_px": 0}),
        (Validator, {"context": 0.5}),
        (Validator, {"on_exhausted": "retry"}),
        (Screen, {"min_dice": 1.5}),
        (Screen, {"after": 0.0}),
        (Screen, {"after": 1.5}),
        (Dynamic, {"quantile": 2}),
        (Dynamic, {"length": 0}),
    ],
)
def test_an_option_out_of_range_is_refused_by_its_name_and_value(group: Any, option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=rf"{name} must .*, got {value!r}"):
        group(**option)


def test_the_thresholds_are_those_of_the_published_neighbours() -> None:
    options = Validator()
    assert (options.min_coverage, options.max_false_positive) == (0.7, 0.05) and options.min_change > 0
