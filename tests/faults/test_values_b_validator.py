"""A rejected edit of several images is undone in all of them, or refused with the names."""

import pytest
import torch

from monai_diffaug import DiffusionLocalInpaintd, LatentValidated


def sample():
    image = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0)) * 20 + 100
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[:, 20:44, 20:44] = 1
    return {"t1c": image, "flair": 3 * image, "label": mask * 0, "mask": mask, "prompt": "MRI of brain, glioma"}


def edit(keys, **options):
    return DiffusionLocalInpaintd(keys, label_key="label", num_inference_steps=1, **options)


def test_all_images_and_the_label_are_put_back():
    before = sample()
    judge = LatentValidated(["t1c", "flair"], label_key="label", min_dice=1.0)
    after = judge(edit(["t1c", "flair"], keep_original=True)(before))
    assert all(torch.equal(after[key], before[key]) for key in ("t1c", "flair", "label"))
    assert not any(key.endswith("_original") for key in after)
    assert [after[f"{key}_diffaug"]["accepted"] for key in ("t1c", "flair")] == [False, False]


def test_a_judge_of_one_of_two_edited_images_is_refused():
    with pytest.raises(ValueError, match="also changed flair.* name all of them in keys="):
        LatentValidated("t1c", label_key="label", min_dice=1.0)(edit(["t1c", "flair"], keep_original=True)(sample()))


def test_a_judge_that_holds_the_edit_of_more_images_is_refused_when_it_is_made():
    with pytest.raises(ValueError, match="inpaint= also edits flair"):
        LatentValidated("t1c", label_key="label", inpaint=edit(["t1c", "flair"]))
