from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug import Contrast, DiffusionLocalInpaint, InpaintOptions, LatentValidated
from monai_diffaug.edit.contrast import LesionContrast, lesion_contrast
from monai_diffaug.edit.decode import Outcome
from monai_diffaug.edit.request import Request, finish_request
from monai_diffaug.geometry.slices import slice_plane
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd

PROMPT = "CT of abdomen, renal cell carcinoma, hypodense"


def noisy(*size: int) -> torch.Tensor:
    return 100 + 10 * torch.randn(1, *size, generator=torch.Generator().manual_seed(0))


def square(*size: int) -> torch.Tensor:
    mask = torch.zeros(1, *size)
    mask[:, 20:40, 24:44] = 1
    return mask


def test_contrast_is_in_the_unit_of_the_image_and_its_ratio_in_standard_deviations_of_the_rim() -> None:
    image, mask = noisy(64, 72), square(64, 72)
    assert lesion_contrast(image + 40 * mask, mask, None) == pytest.approx((40, 4), rel=0.1)
    assert lesion_contrast(image - 25 * mask, mask, None) == pytest.approx((-25, -2.5), rel=0.15)
    assert abs(lesion_contrast(image, mask, None).cnr) < 0.2


def test_air_in_a_part_of_the_rim_and_tissue_far_away_do_not_count() -> None:
    image, mask = noisy(64, 72), square(64, 72)
    expected = lesion_contrast(image + 40 * mask, mask, None)
    image[:, :, 50:] = -1000
    assert lesion_contrast(image + 40 * mask, mask, None) == pytest.approx(expected, rel=0.3)
    image[:, 56:] = 5000
    assert lesion_contrast(image + 40 * mask, mask, None) == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_rim_of_a_volume_lies_in_its_slices(plane: str) -> None:
    image, mask = noisy(48, 48, 48), torch.zeros(1, 48, 48, 48)
    mask[:, 18:30, 18:30, 18:30] = 1
    axis = {"sagittal": 1, "coronal": 2, "axial": 3}[plane]
    image.narrow(axis, 0, 18).fill_(900)
    image.narrow(axis, 30, 18).fill_(900)  # slices without the lesion
    assert lesion_contrast(image + 30 * mask, mask, slice_plane(None, plane)).contrast == pytest.approx(30, abs=2)


def test_of_colours_the_mean_counts_and_of_other_channels_the_clearest() -> None:
    mask = square(64, 72)
    flat = torch.cat([noisy(64, 72)] * 3)
    flat[0] += 30 * mask[0]
    assert lesion_contrast(flat, mask, None).contrast == pytest.approx(10, abs=1.5)
    assert lesion_contrast(flat[:2], mask, None).contrast == pytest.approx(30, abs=1.5)


def test_without_a_mask_a_rim_or_noise_the_figures_are_finite() -> None:
    image, mask = torch.full((1, 64, 72), 7.0), square(64, 72)
    assert lesion_contrast(image, mask * 0, None) == (0, 0)
    assert lesion_contrast(image, torch.ones_like(mask), None) == (0, 0)
    assert lesion_contrast(image, mask, None) == (0, 0)
    assert lesion_contrast(image - mask, mask, None) == (-1, -1000)
    assert lesion_contrast((image - mask).to(torch.int16), mask.to(torch.uint8), None) == (-1, -1000)


@pytest.mark.parametrize(
    ("options", "measured", "text", "reason"),
    [
        ({}, (0.0, 0.0), PROMPT, ""),
        ({"min_contrast": 10}, (-12.0, -0.1), "cyst", ""),
        ({"min_contrast": 10}, (-8.0, -5.0), "cyst", "contrast 8 < 10"),
        ({"min_cnr": 1}, (-8.0, -0.5), "cyst", "ratio 0.5 < 1"),
        ({"follow_words": True}, (-8.0, -0.5), PROMPT, ""),
        ({"follow_words": True}, (7.0, 0.5), PROMPT, "it is brighter than its rim (contrast 7), the prompt says darker"),
        ({"follow_words": True}, (-7.0, 0.5), "US, hyperechoic", "it is darker than its rim (contrast -7), the prompt says brighter"),
        ({"follow_words": True}, (0.0, 0.0), PROMPT, "it is as bright as its rim (contrast 0), the prompt says darker"),
        ({"follow_words": True}, (7.0, 0.5), "isodense", ""),
    ],
)
def test_an_edit_that_is_not_seen_or_against_the_words_is_refused(options, measured, text, reason) -> None:
    refusal = Contrast(**options).refusal(LesionContrast(*measured), text)
    assert refusal == (f"not visible: {refusal.removeprefix('not visible: ')}" if reason else "") and reason in refusal


@pytest.mark.parametrize("options", [{"min_contrast": -1}, {"min_cnr": -0.1}])
def test_a_negative_least_contrast_is_refused(options) -> None:
    with pytest.raises(ValueError, match="must be >= 0"):
        Contrast(**options)


def test_a_refused_edit_gives_image_and_label_back_untouched_with_its_figures_in_the_record() -> None:
    image, mask, label = noisy(64, 72).numpy(), square(64, 72), torch.zeros(1, 64, 72)
    request = Request(MetaTensor(image, affine=torch.diag(torch.tensor([0.5, 2.0, 1.0, 1.0]))), mask, PROMPT, label, None, 3)
    outcome = Outcome(torch.from_numpy(image) + 30 * mask, 1, "")
    kept = finish_request(request, outcome, label_value=1, model="tiny")
    assert kept.record["applied"] and kept.record["contrast"] == pytest.approx(30, abs=2) and kept.record["size_mm"] == 40.0
    assert kept.record["reason"] == "" and kept.label.any()
    refused = finish_request(request, outcome, label_value=1, model="tiny", contrast=Contrast(follow_words=True))
    assert refused.image is request.image and refused.label is label
    assert (
        not refused.record["applied"]
        and refused.record["n_slices"] == 0
        and refused.record["reason"].startswith("not visible: it is bright")
    )
    assert refused.record["contrast"] == kept.record["contrast"]
    assert {name: type(value) for name, value in refused.record.items()} == {name: type(value) for name, value in kept.record.items()}


def sample_of(seed: int) -> dict:
    image = 100 + 10 * torch.randn(1, 64, 72, generator=torch.Generator().manual_seed(seed))
    return {"image": image, "mask": square(64, 72), "label": torch.zeros(1, 64, 72), "prompt": PROMPT}


def test_a_validator_that_retries_tries_another_seed_after_an_edit_that_is_not_seen(random_inpainter) -> None:
    options = InpaintOptions(contrast=Contrast(min_contrast=1e6))
    paint = DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=1, options=options)
    edit = LatentValidated("image", label_key="label", inpaint=paint, on_reject="retry", max_tries=3, model=lambda x: x[:, :1] * 0 + 1)
    sample = sample_of(0)
    result = edit.set_random_state(seed=0)(sample)
    record = result["image_diffaug"]
    assert not record["applied"] and record["tries"] == 3 and record["reason"].startswith("not visible") and record["contrast"] != 0
    assert result["image"] is sample["image"] and not result["label"].any()
    assert not [key for key in result if str(key).endswith("_original")]


def test_every_edit_records_its_contrast_and_an_untouched_image_zero(random_inpainter) -> None:
    paint = DiffusionLocalInpaint(random_inpainter, num_inference_steps=1)
    sample = sample_of(1)
    edit = paint.apply(sample["image"], sample["mask"], PROMPT, seed=1)
    expected = lesion_contrast(edit.image, sample["mask"], None)
    assert (edit.record["contrast"], edit.record["cnr"], edit.record["size_mm"]) == (*expected, 20.0) and np.isfinite(expected).all()
    assert paint.untouched(PROMPT, "not triggered")["contrast"] == 0.0
