"""The accept rule, with segmenters that answer what the test wants."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from monai_diffaug.edit.validation_options import Validator
from monai_diffaug.errors import GridMismatchError
from monai_diffaug.models.registry import tiny_folder
from monai_diffaug.transforms.latent_validate import LatentValidate
from tests.transforms.judged import NEW, OLD, bright, disc, flat, nothing


def edited():
    """A picture with a bright disc where ``disc`` is."""
    return torch.where(disc() > 0, NEW, flat((1, 64, 64)))


def test_an_edit_that_is_found_inside_its_mask_is_accepted():
    verdict = LatentValidate(bright, window=(0, 1), options=Validator(context=2.0))(edited(), disc(), flat((1, 64, 64)))
    assert verdict.accepted and verdict.reason == ""
    assert verdict.score > 0.95 and verdict.coverage > 0.95 and verdict.change == pytest.approx(NEW - OLD, abs=1e-5)


def test_an_edit_that_is_not_found_is_rejected_with_the_reason():
    verdict = LatentValidate(nothing, window=(0, 1))(edited(), disc())
    assert not verdict.accepted and verdict.score == 0 and "found nothing" in verdict.reason


def test_a_prediction_next_to_the_mask_counts_as_false_positive_only_beyond_the_rim():
    mask, painted = disc(radius=12), disc(radius=14)
    image = torch.where(painted > 0, NEW, flat(mask.shape))
    strict = LatentValidate(bright, window=(0, 1), options=Validator(rim=0.0))(image, mask)
    tolerant = LatentValidate(bright, window=(0, 1), options=Validator(rim=0.06))(image, mask)
    assert strict.false_positive > 0.2 and not strict.accepted and "false positives" in strict.reason
    assert tolerant.false_positive == 0 and tolerant.accepted


def test_each_threshold_rejects_on_its_own():
    mask = disc(radius=12)
    image = torch.where(disc(radius=10) > 0, NEW, flat(mask.shape))
    loose = Validator(min_coverage=0.0, max_false_positive=9.0, min_change=0.0)
    assert LatentValidate(bright, 0.0, window=(0, 1), options=loose)(image, mask, flat(mask.shape)).accepted
    for min_dice, options, word in (
        (0.9, loose, "Dice"),
        (0.0, replace(loose, min_coverage=0.9), "coverage"),
        (0.0, replace(loose, min_change=0.9), "change"),
    ):
        verdict = LatentValidate(bright, min_dice, window=(0, 1), options=options)(image, mask, flat(mask.shape))
        assert not verdict.accepted and word in verdict.reason


def test_an_unchanged_image_is_rejected_even_if_the_segmenter_finds_something():
    image = edited()
    verdict = LatentValidate(bright, window=(0, 1))(image, disc(), image)
    assert verdict.score > 0.9 and not verdict.accepted and "change" in verdict.reason


def test_counts_of_a_volume_are_pooled_over_its_slices_in_the_plane_of_its_affine():
    mask = torch.zeros(1, 40, 64, 64)
    mask[:, 10] = disc(radius=12)
    mask[:, 11] = disc(radius=6)
    image = flat(mask.shape)
    image[:, 10] = torch.where(mask[:, 10] > 0, NEW, image[:, 10])
    affine = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # first voxel axis is superior
    judge = LatentValidate(bright, window=(0, 1), plane="axial")
    verdict = judge(MetaTensor(image, affine=affine), mask)
    area = [float(mask[:, i].sum()) for i in (10, 11)]
    assert verdict.coverage == pytest.approx(area[0] / sum(area), abs=0.03)
    assert verdict.predicted[:, 10].any() and not verdict.predicted[:, 11].any()
    assert verdict.predicted.shape == mask.shape


def test_a_lesion_of_three_pixels_at_the_border_is_judged():
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:23, 0:3] = 1
    verdict = LatentValidate(bright, window=(0, 1), options=Validator(rim=0.06))(torch.where(mask > 0, NEW, flat(mask.shape)), mask)
    assert verdict.coverage > 0.9 and verdict.score > 0.6


def test_same_seed_same_verdict_whatever_the_batch_size():
    class Noisy:
        size_px = 64

        def predict(self, images, generators):
            return torch.stack([torch.rand((1, 64, 64), generator=g) for g in generators])

    noisy = Noisy()
    mask = torch.zeros(1, 64, 64, 5)
    mask[:, 20:40, 20:40] = 1
    image = torch.rand(1, 64, 64, 5)
    first, second = (LatentValidate(noisy, options=Validator(batch_size=n))(image, mask, seed=3) for n in (1, 4))
    other = LatentValidate(noisy)(image, mask, seed=4)
    assert torch.equal(first.predicted, second.predicted) and first.score == second.score
    assert not torch.equal(first.predicted, other.predicted)


def test_a_mask_on_another_grid_names_both_shapes():
    with pytest.raises(GridMismatchError, match=r"32, 32.*64, 64.*ResampleToMatchd"):
        LatentValidate(bright)(torch.rand(1, 64, 64), torch.ones(1, 32, 32))


def test_a_least_dice_out_of_range_is_refused():
    with pytest.raises(ValueError, match="min_dice"):
        LatentValidate(bright, 1.5)


@pytest.mark.parametrize("across", [False, True])
def test_lesions_far_apart_are_judged_at_the_resolution_that_each_would_be_judged_at_alone(across):
    """A judge that wants a lesion in the middle of its square, as one that was trained on such squares."""
    spots = disc(256, (40, 40), 6), disc(256, (210, 200), 5)
    image = torch.where(spots[0] + spots[1] > 0, NEW, flat((1, 256, 256)))
    if across:  # the same two in neighbouring slices of a volume, one of them empty
        image, spots = torch.stack([flat((1, 256, 256)), image], -1), tuple(torch.stack([spot * 0, spot], -1) for spot in spots)

    def central(images):
        prediction = bright(images)
        middle = prediction[..., 60:68, 60:68].flatten(1).any(1)
        return prediction * middle[:, None, None, None]

    judge = LatentValidate(central, window=(0, 1))
    alone = [judge(image, spot) for spot in spots]
    both = judge(image, spots[0] + spots[1])
    assert both.accepted and both.score > 0.95 and torch.equal(both.predicted, alone[0].predicted | alone[1].predicted)
    half = judge(torch.where(spots[1] > 0, OLD, image), spots[0] + spots[1])
    area = [float(spot.sum()) for spot in spots]
    assert not half.accepted and half.coverage == pytest.approx(area[0] / sum(area), abs=0.03)


def test_what_is_found_beyond_the_dilated_box_is_no_false_positive():
    mask = disc(radius=6)
    near, far = flat(mask.shape), flat(mask.shape)
    near[:, 29:35, 40:43] = NEW  # two pixels next to the mask: in its box of 13 pixels enlarged by 4 on each side
    far[:, 29:35, 46:49] = NEW
    judge = LatentValidate(bright, window=(0, 1), options=Validator(rim=0.0, box_margin=0.3, context=3.0))
    near_share, far_share = (judge(torch.where(mask > 0, NEW, image), mask).false_positive for image in (near, far))
    assert near_share > 0.05 and far_share < 0.05


@pytest.mark.skipif(
    not all((tiny_folder(p) / "config.json").is_file() for p in ("validator", "inpainter/vae")),
    reason="the embedded validator or its VAE is not there yet",
)
def test_the_embedded_validator_gives_the_same_verdict_twice():
    judge = LatentValidate()
    image, mask = edited(), disc()
    first, second = judge(image, mask, seed=1), judge(image, mask, seed=1)
    assert first.score == second.score and torch.equal(first.predicted, second.predicted)


def test_non_finite_voxels_are_named():
    image = flat((1, 64, 64))
    image[0, 5, 5] = torch.nan
    with pytest.raises(ValueError, match=r"non-finite voxels.*nan_to_num"):
        LatentValidate(bright)(image, disc())
