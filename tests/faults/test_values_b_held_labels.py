"""Labels as users hold them: one-hot channels, floats, 0 and 255, -1 for unknown, nested classes. Right, or one error with the way out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscreted

from monai_diffaug import DiffusionLocalInpaintd, EraseLesiond, GridMismatchError, LatentValidated, PlaceMaskd, Validator, presets
from tests.transforms.judged import bright, nothing


def sample(label: torch.Tensor | None = None) -> dict[str, object]:
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[:, 20:40, 20:40] = 1
    image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) + 1
    return {"image": image, "mask": mask, "prompt": "MRI of brain, glioma", "label": torch.zeros(1, 64, 64) if label is None else label}


@pytest.fixture
def paint(random_inpainter):
    def built(**options):
        return DiffusionLocalInpaintd("image", label_key="label", num_inference_steps=1, model=random_inpainter, **options)

    return built


def test_one_hot_channels_are_one_error_with_the_way_out_everywhere(paint, random_inpainter) -> None:
    one_hot = torch.stack([1 - sample()["mask"][0], sample()["mask"][0]]).float()
    data = sample(one_hot)
    for transform in (paint(), PlaceMaskd("image", label_key="label"), EraseLesiond("image", validator=nothing, model=random_inpainter)):
        with pytest.raises(
            GridMismatchError, match=r"2 channels.*AsDiscreted\(argmax=True\).*edit before the transform that makes channels"
        ):
            transform(data)
    ids = AsDiscreted("label", argmax=True)(data)
    assert (paint(label_value=2)(ids)["label"][data["mask"] > 0] == 2).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.uint8, torch.int16, torch.int64, torch.bool])
@pytest.mark.parametrize("kind", [torch.as_tensor, MetaTensor, lambda tensor: tensor.numpy()])
def test_the_label_keeps_its_type_and_its_values_outside_the_mask(paint, dtype, kind) -> None:
    label = torch.zeros(1, 64, 64, dtype=dtype)
    label[:, 30:60, 30:60] = 1
    result = paint(label_value=1)(sample(kind(label)))["label"]
    expected = torch.where(sample()["mask"] > 0, torch.ones((), dtype=dtype), label)
    assert type(result) is type(kind(label)) and np.array_equal(np.asarray(result), expected.numpy())
    assert result.dtype == kind(label).dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_picture_of_a_mask_is_an_error_with_two_ways_out_that_work(paint, dtype) -> None:
    label = torch.zeros(1, 64, 64, dtype=dtype)
    label[:, 44:60, 44:60] = 255
    with pytest.raises(ValueError, match="0 and 255 alone.*AsDiscreted.*label_value=255"):
        paint()(sample(label))
    painted = paint(label_value=255)(sample(label))["label"]
    assert painted.unique().tolist() == [0, 255] and (painted[sample()["mask"] > 0] == 255).all()
    ids = paint()(AsDiscreted("label", threshold=128)(sample(label)))["label"]
    assert ids.unique().tolist() == [0, 1] and torch.equal(ids > 0, painted > 0)


def test_a_picture_of_a_mask_can_be_erased(random_inpainter) -> None:
    label = torch.zeros(1, 64, 64, dtype=torch.uint8)
    label[:, 44:60, 44:60] = 255
    options = {"validator": nothing, "model": random_inpainter, "num_inference_steps": 1}
    assert not EraseLesiond("image", **options)(sample(label))["label"].any()
    with pytest.raises(RuntimeError, match="Relocated") as error:
        presets.relocate(modality="MRI", anatomy="brain", model=random_inpainter, prob=1.0)(sample(label))
    assert "0 and 255 alone" in str(error.value.__cause__)


def test_unknown_voxels_keep_minus_one_where_nothing_is_painted_and_no_lesion_is_placed_on_them(paint) -> None:
    label = torch.zeros(1, 64, 64, dtype=torch.int16)
    label[:, :, 30:] = -1
    result = paint()(sample(label))["label"]
    inside = sample()["mask"] > 0
    assert (result[inside] == 1).all() and torch.equal(result[~inside], label[~inside])
    for seed in range(5):
        placed = PlaceMaskd("image", label_key="label").set_random_state(seed)(sample(label))["mask"]
        assert placed.any() and not placed[label == -1].any()


def test_several_classes_are_painted_from_one_mask_of_class_ids(paint) -> None:
    label = torch.zeros(1, 64, 64, dtype=torch.uint8)
    label[:, :, 32:] = 7  # an organ
    label[:, 36:44, 20:24] = 4  # of higher priority than what is painted there
    data = sample(label)
    data["mask"][:, 26:34, 26:34] = 4
    data["mask"][:, 34:40, 20:40] = 2
    result = paint(label_value=(2, 1, 4))(data)["label"]
    expected = torch.where(data["mask"] > 0, data["mask"], label)
    expected[:, 36:44, 20:24] = 4
    assert torch.equal(result, expected)
    with pytest.raises(ValueError, match="the mask has the value 2, and label_value names the classes 1, 4"):
        paint(label_value=(1, 4))(data)


def test_a_rejected_edit_of_several_classes_is_restored_and_one_class_can_be_refined(paint) -> None:
    data = sample(torch.full((1, 64, 64), 7, dtype=torch.uint8))
    judged = LatentValidated("image", label_key="label", label_value=(2, 1), model=nothing, inpaint=paint(label_value=(2, 1)))
    assert judged(data)["label"] is data["label"]
    with pytest.raises(ValueError, match="refine_label=True paints one class"):
        LatentValidated("image", label_key="label", label_value=(2, 1), model=bright, validator=Validator(refine_label=True))
