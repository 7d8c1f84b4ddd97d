from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.studies.erased_lesions import Erasure, erase_each, measure, table
from monai_diffaug.studies.painter import Painter


def erasure(dataset: str, group: int, erased: bool) -> Erasure:
    return Erasure(dataset, group, True, not erased, False, erased, erased, 1 if erased else 3)


def test_shares_and_their_intervals_are_those_of_the_groups() -> None:
    erasures = [erasure("breast", group, erased=group < 3) for group in range(4)] + [erasure("colon", 0, erased=True)]
    figures = measure(erasures, resamples=200)
    assert list(figures) == ["breast", "colon", "all"]
    assert figures["breast"]["erased"].value == 0.75 and figures["breast"]["lesion after"].value == 0.25
    assert figures["breast"]["erased"].low < 0.75 < figures["breast"]["erased"].high and figures["breast"]["lesion before"].low == 1.0
    assert figures["all"]["erased"].n == 5 and figures["all"]["erased"].value == 0.8
    assert "colon" in table(figures) and len(table(figures).splitlines()) == 4


def test_one_data_set_has_no_line_for_all() -> None:
    assert list(measure([erasure("breast", 0, True)], resamples=10)) == ["breast"]


@pytest.mark.slow
def test_a_validator_that_finds_what_is_there_tells_before_from_after(breast, random_inpainter) -> None:
    """Black pixels count as a lesion; the random model paints grey ones."""

    def dark(images: torch.Tensor) -> torch.Tensor:
        return (images[:, :1] < -0.75).float()

    painter = Painter(model=random_inpainter, num_inference_steps=1)
    erasures = erase_each(breast, 4, painter, validator=dark, max_tries=2)
    assert len(erasures) == 4 and {each.dataset for each in erasures} == {"breast_ultrasound"}
    assert all(each.tries in (1, 2) and (each.erased or each.tries == 2) for each in erasures)
    again = erase_each(breast, 4, painter, validator=dark, max_tries=2)
    assert again == erasures
    assert np.mean([each.nothing_after for each in erasures]) >= np.mean([each.nothing_before for each in erasures])
