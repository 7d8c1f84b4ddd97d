from __future__ import annotations

from functools import partial

import pytest
import torch

from monai_diffaug.studies import downstream
from monai_diffaug.studies.arms import DONORS, Generator, arm_of, synthesise


@pytest.fixture
def generator(breast) -> Generator:
    return Generator("tiny", "", more_labelled=partial(downstream.labelled_cases, breast))


def test_lesions_come_from_images_that_the_study_does_not_train_on_and_from_no_test_group(breast, generator):
    forty = downstream.labelled_cases(breast, 40)
    arm, networks = arm_of("real_lesions")
    assert networks is None
    transform = arm(forty, generator)
    donors = {case.group for case in transform.donors}
    assert donors - {case.group for case in forty} and not donors & {case.group for case in downstream.cases_of(breast, "validation")}
    assert len(transform.donors) <= DONORS
    with pytest.raises(ValueError, match="further labelled images"):
        arm(forty, Generator("tiny", ""))


def test_backgrounds_are_those_of_the_labelled_images(breast, generator):
    forty = downstream.labelled_cases(breast, 40)
    transform = arm_of("real_lesions")[0](forty, generator)
    synthetic = next(c for c in (synthesise(transform, forty, 0, i) for i in range(9)) if c is not None)
    outside = synthetic.mask == 0
    assert any(torch.equal(case.image[outside], synthetic.image[outside]) for case in forty)
