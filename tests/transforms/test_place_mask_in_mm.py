from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import label as components

from monai_diffaug.training.captions import _shape_word
from monai_diffaug.transforms.place_mask import PlaceMask, PlaceMaskd
from monai_diffaug.transforms.text_prompt import TextPromptd


def bright(*size: int, spacing_mm: tuple[float, ...] = ()) -> MetaTensor:
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0)) + 1
    return MetaTensor(image, affine=torch.diag(torch.tensor([*(spacing_mm or (1.0, 1.0, 1.0)), 1.0])))


def extent_mm(mask: torch.Tensor, spacing_mm: tuple[float, ...]) -> list[float]:
    return [(int(np.ptp(axis)) + 1) * mm for axis, mm in zip(np.nonzero(np.asarray(mask)[0]), spacing_mm, strict=False)]


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.8, 0.8, 5.0), (0.5, 2.0, 3.0)])
def test_a_lesion_of_a_volume_is_an_ellipsoid_in_mm_along_all_three_axes(spacing_mm: tuple[float, float, float]) -> None:
    image = bright(*(round(70 / mm) for mm in spacing_mm), spacing_mm=spacing_mm)
    place = PlaceMask(size_mm=(20, 30), tissue_above=0.0)
    for seed in range(10):
        mask = place.apply(image, seed=seed)
        extents = extent_mm(mask, spacing_mm)
        assert max(extents) <= 30 + max(spacing_mm) and min(extents) >= 0.45 * 20 - 2 * max(spacing_mm), extents
        assert max(extents) >= 0.9 * 20 - max(spacing_mm)
        assert components(mask[0].numpy())[1] == 1
        assert torch.equal(mask, place.apply(image, seed=seed))


def test_a_lesion_of_a_picture_has_its_size_in_mm_or_pixels() -> None:
    for image, mm in ((bright(200, 150), 1.0), (bright(200, 150, spacing_mm=(0.25, 0.25, 1.0)), 0.25), (bright(200, 150).numpy(), 1.0)):
        for seed in range(6):
            extents = extent_mm(PlaceMask(size_mm=(10, 20)).apply(image, seed=seed), (mm, mm))
            assert 0.9 * 10 - 2 * mm <= max(extents) <= 20 + mm


def test_a_lesion_that_is_too_large_for_the_organ_becomes_smaller_down_to_the_smallest_size() -> None:
    image, organ = bright(80, 80, 40), torch.zeros(1, 80, 80, 40)
    organ[:, 30:50, 30:50, 10:30] = 3
    for seed in range(5):
        mask = PlaceMask(size_mm=(5, 60)).apply(image, organ, seed=seed)
        assert mask.any() and not mask[organ == 0].any()
    nothing = PlaceMask(size_mm=(50, 60)).apply(image, organ, seed=0)
    assert not nothing.any() and nothing.meta["empty_because"] == "no free place was found"


@pytest.mark.parametrize(("word", "index", "least"), [("round", 0, 60), ("oval", 1, 60), ("irregular", 2, 45), ("spiculated", 2, 60)])
def test_the_outline_is_what_the_prompt_says_by_the_measure_of_the_captions(word: str, index: int, least: int) -> None:
    image, place = bright(160, 160), PlaceMask(size_mm=(50, 60), tissue_above=0.0)
    prompt = f"ultrasound of breast, malignant mass, {word}{' margin' if word == 'spiculated' else ''}"
    words = [_shape_word(np.asarray(place.apply(image, prompt=prompt, seed=seed))[0] > 0) for seed in range(60)]
    assert words.count(index) >= least, words


def test_the_slices_of_a_round_lesion_of_a_volume_are_round() -> None:
    mask = PlaceMask(size_mm=(30, 30), tissue_above=0.0).apply(bright(60, 60, 50), prompt="CT of abdomen, cyst, round", seed=1)[0].numpy()
    assert _shape_word(mask[..., int(mask.sum((0, 1)).argmax())] > 0) == 0


def test_prompt_and_outline_are_drawn_together_also_with_a_size_that_is_a_share() -> None:
    words = TextPromptd(
        "prompt", modality="ultrasound", finding="benign mass", attributes={"shape": ["round", "irregular"]}, attribute_prob=1
    )
    place = PlaceMaskd("image", prompt_key="prompt", size_range=(0.3, 0.4))
    words.set_random_state(seed=0), place.set_random_state(seed=0)
    drawn = []
    for _ in range(24):
        sample = place(words({"image": bright(128, 128)}))
        drawn.append(("round" in sample["prompt"], _shape_word(sample["mask"][0].numpy() > 0) == 0))
        assert max(extent_mm(sample["mask"], (1, 1))) <= 0.4 * 128 + 1
    assert sum(said == is_round for said, is_round in drawn) >= 22 and {said for said, _ in drawn} == {True, False}


def test_organs_and_lesions_are_told_apart_by_class_ids() -> None:
    organs = torch.ones(1, 80, 80)
    organs[:, 20:60, 20:60] = 6
    organs[:, 20:60, 40:60] = 9
    sample = {"image": bright(80, 80), "label": organs}
    blocked = PlaceMaskd("image", label_key="label").set_random_state(0)(sample)["mask"]
    assert (
        not blocked.any()
        and "lesion_values" in blocked.meta["empty_because"]
        and "marks all of the tissue" in blocked.meta["empty_because"]
    )
    place = PlaceMaskd("image", region_key="label", region_values=6, label_key="label", lesion_values=[9, 12], size_mm=(6, 10))
    place.set_random_state(0)
    for _ in range(5):
        mask = place(sample)["mask"]
        assert mask.any() and bool((organs[mask.as_tensor() > 0] == 6).all())
    unknown = torch.where(organs == 9, -1.0, 0.0)
    mask = PlaceMaskd("image", label_key="label", lesion_values=9).set_random_state(0)({**sample, "label": unknown})["mask"]
    assert mask.any() and not mask[unknown < 0].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_mm": (0, 5)}, "size_mm must be"),
        ({"size_mm": (5, 8), "bank": [np.ones((4, 4))]}, "a bank has scale_range"),
        ({"prompt_key": "prompt", "bank": [np.ones((4, 4))]}, "prompt_key needs shape"),
        ({"region_values": 3}, "needs region_key"),
        ({"lesion_values": 3}, "needs label_key"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        PlaceMaskd("image", **options)


def test_without_a_prompt_the_order_is_explained() -> None:
    with pytest.raises(KeyError, match="put TextPromptd before PlaceMaskd"):
        PlaceMaskd("image", prompt_key="prompt")({"image": bright(20, 20)})
