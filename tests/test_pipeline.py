"""The four transforms together, as the README writes them, on real images with the embedded models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import list_data_collate
from monai.transforms import Compose

from monai_diffaug import DiffusionLocalInpaintd, LatentValidated, MedSAMMaskd, TextPromptd
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.read_entry import read_entry


@pytest.fixture(scope="module")
def lesion(packed) -> dict[str, np.ndarray]:
    contents = map(read_entry, read_datalist(packed("breast_ultrasound"), section="validation"))
    content = next(c for c in contents if (c.ids == 2).sum() > 1500)
    return {"image": content.image.numpy(), "label": (content.ids > 0).numpy().astype(np.uint8)}


def augmentation(**validator: object) -> Compose:
    return Compose(
        [
            MedSAMMaskd("image", mask_key="mask", label_key="label"),
            TextPromptd("prompt", modality="ultrasound", finding=["benign mass", "malignant mass"]),
            DiffusionLocalInpaintd("image", label_key="label", num_inference_steps=4, keep_original=True),
            LatentValidated("image", label_key="label", **validator),
        ]
    ).set_random_state(seed=2)


def test_the_mask_lies_on_the_lesion_and_only_it_changes(lesion) -> None:
    result = augmentation(on_reject="flag")(lesion)
    mask, label = np.asarray(result["mask"]) > 0, lesion["label"] > 0
    assert 2 * (mask & label).sum() / (mask.sum() + label.sum()) > 0.7
    changed = np.asarray(result["image"]) != lesion["image"]
    assert changed[mask].mean() > 0.8
    assert changed[~mask].mean() < 0.05
    assert result["image_diffaug"]["applied"] is True and result["image_diffaug"]["score"] >= 0


def test_a_rejected_sample_is_put_back_whole(lesion) -> None:
    result = augmentation(model=lambda images: torch.zeros_like(images[:, :1]))(lesion)
    assert np.array_equal(result["image"], lesion["image"]) and np.array_equal(result["label"], lesion["label"])
    assert result["image_diffaug"]["accepted"] is False
    assert not [key for key in result if str(key).endswith("_original")]


def test_retry_paints_again_with_other_seeds_and_accepted_and_rejected_samples_collate(lesion) -> None:
    mask = {**lesion, "mask": lesion["label"], "prompt": "ultrasound of breast, malignant mass"}
    sums = []

    def never_found(images: torch.Tensor) -> torch.Tensor:
        sums.append(float(images.sum()))
        return torch.zeros_like(images[:, :1])

    transform = LatentValidated(
        "image",
        label_key="label",
        inpaint=DiffusionLocalInpaintd("image", label_key="label", num_inference_steps=2),
        on_reject="retry",
        max_tries=2,
        model=never_found,
    )
    rejected = transform(mask)
    assert len(sums) == 2 and sums[0] != sums[1]
    assert rejected["image_diffaug"]["tries"] == 2 and rejected["image_diffaug"]["accepted"] is False
    untouched = LatentValidated("image", inpaint=DiffusionLocalInpaintd("image"), prob=0.0)(mask)
    assert list_data_collate([rejected, untouched])["image_diffaug"]["tries"].tolist() == [2, 0]
