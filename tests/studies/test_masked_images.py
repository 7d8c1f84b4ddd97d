from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.studies import masked_images
from monai_diffaug.studies.masked_images import MIN_AREA_PX, MaskedImage, crop_of, cut_squares, first_lesions, free_places, real_lesions
from monai_diffaug.studies.study_images import StudyData, StudyInputError


def test_lesions_are_whole_connected_parts_of_validation_labels(breast):
    from scipy.ndimage import label

    labels = {image.index: image.labelled for image in breast.images()}
    lesions = real_lesions(breast, 6)
    assert len(lesions) == 6
    for lesion in lesions:
        assert lesion.mask.sum() >= MIN_AREA_PX and label(lesion.mask_hw)[1] == 1 and not (lesion.mask_hw & ~labels[lesion.index]).any()
    assert [one.index for one in real_lesions(breast, 6, seed=1)] != [one.index for one in lesions]
    training = real_lesions(breast, section="training")
    assert len(real_lesions(breast)) > 6 and not {one.group for one in training} & {one.group for one in lesions}


def test_the_first_lesions_are_of_different_images_in_their_order(breast):
    images = breast.images()
    shown = [image.index for image in images if any(mask.sum() > 3 * MIN_AREA_PX for _, mask in image.findings)]
    first = [one.index for one in first_lesions(images, 8)]
    assert first == sorted(set(first)) and set(first[:3]) <= set(shown[:6])


def test_places_lie_on_tissue_of_normal_images_that_take_turns(breast):
    normal = {image.index for image in breast.images() if image.is_normal}
    places = free_places(breast, 8)
    assert len({place.index for place in places}) >= 7 and {place.index for place in places} <= normal
    assert all(place.image[place.mask > 0].float().mean() > 8 for place in places)
    again = free_places(breast, 8)
    assert all(torch.equal(a.mask, b.mask) and a.index == b.index for a, b in zip(places, again, strict=True))


def test_a_data_set_without_normal_images_has_no_places(packed):
    with pytest.raises(StudyInputError, match='in the "validation" list, and .* has 0 and 10'):
        free_places(StudyData.open(packed("colonoscopy_polyp")), 1)


def test_the_outlines_can_be_those_of_one_finding(breast, monkeypatch):
    outlines = []
    borrow = masked_images.borrow_shape
    monkeypatch.setattr(masked_images, "borrow_shape", lambda rng, outline, scale: outlines.append(outline) or borrow(rng, outline, scale))
    free_places(breast, 4, outlines_of="malignant mass")
    malignant = [one.mask_hw for one in real_lesions(breast) if one.finding == "malignant mass"]
    assert outlines and all(any(np.array_equal(outline, mask) for mask in malignant) for outline in outlines)
    with pytest.raises(StudyInputError, match="lesions called 'polyp'"):
        free_places(breast, 1, outlines_of="polyp")


def test_the_prompt_is_in_the_words_of_the_vocabulary_or_the_finding_alone():
    black = torch.zeros(1, 8, 8, dtype=torch.uint8)
    image = MaskedImage(black, black + 1, "glioma", modality="mri", anatomy="brain")
    assert image.prompt == "MRI of brain, glioma" and image.prompt_for("normal tissue") == "MRI of brain, normal tissue"
    assert MaskedImage(image.image, image.mask, "a caption").prompt == "a caption"


@pytest.mark.parametrize(("rim", "is_bright"), [(0, True), (6, False)])
def test_a_square_is_twice_as_wide_as_the_mask(rim, is_bright):
    image, mask = torch.zeros(1, 200, 200, dtype=torch.uint8), torch.zeros(1, 200, 200, dtype=torch.uint8)
    mask[:, 80:120, 90:110] = 1
    image[:, 60 + rim : 140 - rim, 60 + rim : 140 - rim] = 255
    assert (float(crop_of(MaskedImage(image, mask, ""), 64).min()) > 0.99) == is_bright


def test_squares_of_pictures_of_several_sizes_are_cut_as_one_by_one():
    pictures = [torch.rand(2, 40, 50), torch.rand(2, 60, 44)]
    centres, sides, angles, flips = np.array([[20.0, 20], [30, 22]]), [24.0, 30.0], np.array([0.1, -0.2]), np.array([True, False])
    together = cut_squares(pictures, centres, sides, 16, angles, flips)
    alone = [cut_squares([pictures[i]], centres[i : i + 1], sides[i : i + 1], 16, angles[i : i + 1], flips[i : i + 1]) for i in (0, 1)]
    assert torch.equal(together, torch.cat(alone)) and together.shape == (2, 2, 16, 16)
    same_size = cut_squares([pictures[0], pictures[0]], centres, sides, 16, angles, flips)
    assert torch.allclose(same_size[0], alone[0][0], atol=1e-6)
