from __future__ import annotations

import numpy as np

from monai_diffaug.studies import downstream
from monai_diffaug.studies.arms import Generator, arm_factory, synthesise
from monai_diffaug.studies.oracle import DONORS, real_lesions

STUDY = downstream.STUDIES["breast_ultrasound"]


def test_lesions_come_from_images_that_were_not_given_and_from_no_test_group(real_data):
    forty = downstream.labelled_cases(STUDY, 40)
    arm = arm_factory("monai_diffaug.studies.oracle:real_lesions")
    assert arm is real_lesions
    transform = arm(forty, Generator("tiny", ""))
    donors = {case.group for case in transform.donors}
    assert donors - {case.group for case in forty} and not donors & {case.group for case in downstream.held_out_cases(STUDY)}
    assert len(transform.donors) <= DONORS


def test_backgrounds_are_those_of_the_labelled_images(real_data):
    forty = downstream.labelled_cases(STUDY, 40)
    made = next(c for c in (synthesise(real_lesions(forty, Generator("tiny", "")), forty, 0, i) for i in range(9)) if c is not None)
    outside = [np.array_equal(case.image[:, ~made.label], made.image[:, ~made.label]) for case in forty]
    assert any(outside)
