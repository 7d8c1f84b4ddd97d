"""Images of several co-registered channels: in the judges, the places and the outlines."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug import EraseLesiond, LatentValidate, LesionBank, MedSAMMask, PlaceMask, Validator
from monai_diffaug.transforms.nothing_found import NothingFound
from tests.transforms.judged import bright, disc, flat, nothing

SHAPE = (1, 64, 64)


def contrasts(*painted: bool, scale: float = 700.0) -> torch.Tensor:
    """Channels in units far apart, of which some show a bright lesion."""
    lesion = disc()
    return torch.cat([torch.where(lesion > 0, 0.9, flat(SHAPE)) if each else flat(SHAPE) for each in painted]) * torch.tensor(
        [scale**k for k in range(len(painted))]
    ).view(-1, 1, 1)


def test_the_predictions_of_the_channels_are_averaged() -> None:
    judge = LatentValidate(bright)
    assert judge(contrasts(True, True, True, False), disc()).accepted
    assert judge(contrasts(True, False, False, False), disc()).reason == "the validator found nothing"


def test_the_channels_that_are_judged_can_be_named() -> None:
    image = contrasts(True, False, False, False)
    assert LatentValidate(bright, options=Validator(channels=[0]))(image, disc()).accepted
    with pytest.raises(ValueError, match="names channel 4, and the image has 4"):
        LatentValidate(bright, options=Validator(channels=[4]))(image, disc())
    with pytest.raises(ValueError, match="from 0 on"):
        Validator(channels=[-1])


def test_the_change_is_the_mean_over_the_channels_in_their_windows() -> None:
    before, after = contrasts(False, False), contrasts(True, False)
    alone = LatentValidate(bright)(after[:1], disc(), before[:1]).change
    assert LatentValidate(bright)(after, disc(), before).change == pytest.approx(alone / 2, rel=1e-5)


def test_a_lesion_that_one_channel_still_shows_is_not_erased() -> None:
    judge = NothingFound(LatentValidate(bright))
    assert not judge(contrasts(True, False, False, False), disc()).accepted
    assert judge(contrasts(False, False, False, False), disc()).accepted


def test_all_channels_are_erased_together(random_inpainter) -> None:
    data = {"image": contrasts(True, True, False, True), "label": disc()}
    erase = EraseLesiond("image", model=random_inpainter, num_inference_steps=1, validator=nothing)
    erased = erase.edit(data, seed=1)
    inside = disc()[0] > 0
    assert erased["image_diffaug"]["applied"] and not erased["label"].any()
    assert all((erased["image"][k][inside] != data["image"][k][inside]).any() for k in range(4))


def test_a_place_needs_tissue_in_one_channel_at_least() -> None:
    speckle = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) + 1
    image = torch.zeros(4, 64, 64)
    image[1, :, 32:] = 3.0 * speckle[:, 32:]
    image[3, 40:, :] = 0.001 * speckle[40:]
    mask = PlaceMask(size_range=(0.1, 0.2))
    for seed in range(8):
        placed = mask.apply(image, seed=seed)[0] > 0
        assert placed.any() and not placed[:40, :32].any()
    assert PlaceMask().tissue(image)[0, 50, 5] and not PlaceMask().tissue(image)[0, 5, 5]


def test_medsam_sees_the_mean_of_the_channels() -> None:
    grey = 100 - 80 * disc()
    outline = MedSAMMask(box=(18, 18, 46, 46), min_iou=0.0)
    one, four = outline(grey), outline(torch.cat([grey, 40 * grey, 0.01 * grey, grey - 50]))
    both = (one > 0) & (four > 0)
    assert both.sum() > 0.95 * max(one.sum(), four.sum())


def test_a_lesion_bank_takes_grey_and_colour_and_says_so() -> None:
    with pytest.raises(ValueError, match=r"C 1 or 3, got shape \(4, 64, 64\).*SplitDimd"):
        LesionBank.of([{"image": contrasts(True, True, True, True), "label": disc()}])
