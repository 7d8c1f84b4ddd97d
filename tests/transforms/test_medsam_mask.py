"""MedSAMMask and MedSAMMaskd: boxes, gate, propagation, and MONAI's contracts."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import list_data_collate
from monai.transforms import Compose
from torch import Tensor

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.masks.boxes import box_around
from monai_diffaug.models.medsam import MedSAM, load_medsam
from monai_diffaug.models.registry import ModelSpec, tiny_folder
from monai_diffaug.transforms.medsam_mask import MedSAMMask, MedSAMMaskd

needs_weights = pytest.mark.skipif(not tiny_folder("medsam").is_dir(), reason="the embedded MedSAM is not in this tree")
AFFINE = torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0], dtype=torch.float64))


class BoxIsMask(MedSAM):
    """Answers with the box itself; its confidence is the mean intensity of the slice."""

    def __init__(self) -> None:
        self.box_as_mask = False
        self.boxes: list[tuple[float, ...]] = []
        self.batches: list[int] = []

    def encode(self, slices: Tensor, batch_size: int = 4) -> Tensor:
        self.batches.append(len(slices))
        return slices.mean((1, 2, 3))[:, None]

    def decode(self, embeddings: Tensor, boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        masks = torch.zeros(len(embeddings), *size_hw, dtype=torch.bool)
        for mask, box in zip(masks, boxes_xyxy.tolist(), strict=True):
            self.boxes.append(tuple(box))
            x0, y0, x1, y1 = (round(v) for v in box)
            mask[y0 : y1 + 1, x0 : x1 + 1] = True
        return masks, embeddings[:, 0]


def flat_image(channels: int = 1, *size: int) -> Tensor:
    return torch.full((channels, *size), 0.9)


def flat_label(*size: int) -> Tensor:
    label = torch.zeros(1, *size)
    label[0, 10:20, 5:30] = 2
    return label


def test_without_jitter_the_mask_comes_from_the_labels_box() -> None:
    mask = MedSAMMask(BoxIsMask(), jitter_px=0)(flat_image(1, 40, 50), flat_label(40, 50))
    assert torch.equal(mask, (flat_label(40, 50) > 0).to(torch.uint8))


def test_label_value_selects_the_structure() -> None:
    label = flat_label(40, 50)
    label[0, 30:35, 40:45] = 1
    image = flat_image(1, 40, 50)
    assert box_around(MedSAMMask(BoxIsMask(), label_value=1, jitter_px=0)(image, label)[0]) == (40, 30, 44, 34)
    assert box_around(MedSAMMask(BoxIsMask(), jitter_px=0)(image, label)[0]) == (5, 10, 44, 34)


def test_a_label_of_minus_one_is_no_lesion() -> None:
    image, ignored = flat_image(1, 40, 50), flat_label(40, 50)
    ignored[0, 30:35, 40:45] = -1
    for prob in (0.0, 1.0):
        mask = MedSAMMask(BoxIsMask(), jitter_px=0, prob=prob)(image, ignored)
        assert torch.equal(mask, (flat_label(40, 50) > 0).to(torch.uint8))


def test_the_background_of_a_one_hot_label_is_refused_and_its_other_channels_are_united() -> None:
    label, image = flat_label(40, 50)[0].long(), flat_image(1, 40, 50)
    label[30:35, 40:45] = 1
    one_hot = torch.nn.functional.one_hot(label).permute(2, 0, 1)
    for label_value in (None, 1):
        masker = MedSAMMask(BoxIsMask(), label_value=label_value, jitter_px=0)
        with pytest.raises(ValueError, match="3 channels cover every voxel.*argmax=True"):
            masker(image, one_hot)
        assert torch.equal(masker(image, one_hot[1:]), (label[None] > 0).to(torch.uint8))


def test_labels_of_every_type_are_taken() -> None:
    expected = (flat_label(40, 50) > 0).to(torch.uint8)
    for dtype in (torch.bool, torch.uint8, torch.uint16, torch.int64, torch.float16):
        assert torch.equal(MedSAMMask(BoxIsMask(), jitter_px=0)(flat_image(1, 40, 50), flat_label(40, 50).to(dtype)), expected)


def test_each_part_of_the_label_gets_its_own_box_and_the_mask_is_their_union() -> None:
    label = flat_label(40, 50)
    label[0, 30:35, 40:45] = 2
    medsam = BoxIsMask()
    mask = MedSAMMask(medsam, jitter_px=0)(flat_image(1, 40, 50), label)
    assert medsam.boxes == [(5, 10, 29, 19), (40, 30, 44, 34)]
    assert torch.equal(mask, (label > 0).to(torch.uint8))
    MedSAMMask(medsam, jitter_px=0, max_parts=1)(flat_image(1, 40, 50), label)
    MedSAMMask(medsam, jitter_px=0, max_parts=0)(flat_image(1, 40, 50), label)
    assert medsam.boxes[2:] == [(5, 10, 29, 19), (5, 10, 44, 34)]


def test_the_jitter_enlarges_every_side_by_at_most_20_px_at_1024() -> None:
    medsam = BoxIsMask()
    transform = MedSAMMask(medsam).set_random_state(0)
    for _ in range(20):
        transform(flat_image(1, 512, 512), flat_label(512, 512))
    grow = np.array([5, 10, 29, 19]) - np.array(medsam.boxes)
    outward = grow * [1, 1, -1, -1]
    assert (outward >= 0).all() and (outward <= [5, 10, 10, 10]).all()
    assert outward[:, 2:].max() > 8 and outward[:, 2:].std() > 1


def test_the_same_seed_gives_the_same_mask_and_another_seed_another() -> None:
    image, label = flat_image(1, 512, 512), flat_label(512, 512)

    def run(seed: int) -> Tensor:
        return MedSAMMask(BoxIsMask()).set_random_state(seed)(image, label)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_the_number_of_draws_depends_neither_on_the_coin_nor_on_the_data() -> None:
    states = []
    for prob, label in ((0.0, flat_label(32, 32)), (1.0, torch.zeros(1, 32, 32)), (1.0, flat_label(32, 32))):
        transform = MedSAMMask(BoxIsMask(), prob=prob).set_random_state(3)
        transform(flat_image(1, 32, 32), label)
        states.append(transform.R.rand())
    assert len(set(states)) == 1


def test_batching_does_not_change_the_masks_of_a_volume() -> None:
    label = flat_label(64, 64)[..., None].repeat(1, 1, 1, 7)
    masks = [MedSAMMask(BoxIsMask(), batch_size=n).set_random_state(0)(flat_image(1, 64, 64, 7), label) for n in (1, 2, 8)]
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])


def test_only_slices_that_the_label_touches_are_encoded_four_at_a_time() -> None:
    medsam = BoxIsMask()
    label = torch.zeros(1, 64, 64, 9)
    label[:, 10:20, 10:20, 2:8] = 1
    mask = MedSAMMask(medsam, jitter_px=0)(flat_image(1, 64, 64, 9), label)
    assert medsam.batches == [4, 2]
    assert torch.equal(mask, label.to(torch.uint8))


def test_a_fixed_box_gives_a_mask_without_a_label() -> None:
    mask = MedSAMMask(BoxIsMask(), (3, 4, 10, 20))(flat_image(3, 40, 50))
    assert box_around(mask[0]) == (3, 4, 10, 20)
    assert torch.equal(mask, MedSAMMask(BoxIsMask(), np.array([3, 4, 10, 20]))(flat_image(3, 40, 50)))


@pytest.mark.parametrize("box", [(3, 4, 51, 20), (-1, 4, 10, 20), (3, 20, 10, 20), (3, 4, 10, 41), (3, 4, float("nan"), 20)])
def test_a_box_outside_the_image_is_refused_with_box_and_size(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"box .* does not lie within the slice of width 50 and height 40"):
        MedSAMMask(BoxIsMask(), box)(flat_image(1, 40, 50))


def test_the_image_as_box_asks_for_the_whole_slice() -> None:
    medsam = BoxIsMask()
    MedSAMMask(medsam, "image")(flat_image(1, 40, 50))
    assert medsam.boxes == [(0, 0, 50, 40)]


def test_a_callable_sees_index_and_slice_and_may_decline() -> None:
    volume = flat_image(1, 40, 50, 3) + torch.arange(3) / 100

    def middle(index: int, image_slice: Tensor) -> tuple[float, ...] | None:
        view = volume[..., index].transpose(1, 2).flip(1, 2)  # anterior at the top, the patient's right at the left
        assert image_slice.shape == (1, 50, 40) and torch.equal(image_slice, view)
        return (1, 2, 3, 4) if index == 1 else None

    mask = MedSAMMask(BoxIsMask(), middle)(volume)
    assert mask.sum((0, 1, 2)).tolist() == [0, 9, 0]


def test_a_mask_the_model_does_not_believe_in_comes_back_empty() -> None:
    image = torch.full((1, 40, 50), 0.4)
    assert MedSAMMask(BoxIsMask())(image, flat_label(40, 50)).sum() == 0
    assert MedSAMMask(BoxIsMask(), min_iou=0.3)(image, flat_label(40, 50)).sum() > 0


def test_a_mask_outside_the_area_range_comes_back_empty() -> None:
    image, label = flat_image(1, 40, 50), flat_label(40, 50)  # 250 of 2000 pixels
    assert MedSAMMask(BoxIsMask(), jitter_px=0, area_range=(0.13, 1))(image, label).sum() == 0
    assert MedSAMMask(BoxIsMask(), jitter_px=0, area_range=(0, 0.12))(image, label).sum() == 0
    assert MedSAMMask(BoxIsMask(), jitter_px=0, area_range=(0.12, 0.13))(image, label).sum() == 250


def test_an_empty_label_gives_an_empty_mask_and_does_not_load_the_model() -> None:
    mask = MedSAMMask("/no/such/medsam.pth")(flat_image(1, 40, 50), torch.zeros(1, 40, 50))
    assert mask.shape == (1, 40, 50) and mask.sum() == 0


def test_non_finite_voxels_are_named_where_the_model_would_look() -> None:
    image, label = flat_image(1, 40, 50, 3), torch.zeros(1, 40, 50, 3)
    image[..., 0], label[0, 10:20, 5:30, 1] = torch.nan, 1
    assert MedSAMMask(BoxIsMask())(image, label).any()
    image[0, 5, 5, 1] = torch.nan
    with pytest.raises(ValueError, match=r"non-finite voxels.*nan_to_num"):
        MedSAMMask(BoxIsMask())(image, label)


def test_every_slice_of_a_batch_is_judged_by_its_own_embedding_however_many_boxes_it_has() -> None:
    volume, label = flat_image(1, 64, 64, 5), torch.zeros(1, 64, 64, 5)
    volume[..., 1] = volume[..., 4] = 0.1  # not believed
    label[:, 5:15, 5:15] = 1
    label[:, 40:50, 40:50, 1:3] = 1  # two parts there, one elsewhere
    mask = MedSAMMask(BoxIsMask(), jitter_px=0, batch_size=5)(volume, label)
    assert mask.sum((0, 1, 2)).tolist() == [100, 0, 200, 100, 0]


def test_propagation_starts_in_the_middle_and_stops_on_each_side_where_the_gate_fails() -> None:
    medsam = BoxIsMask()
    volume = flat_image(1, 64, 64, 12)
    volume[..., 2] = 0.1
    volume[..., 10] = 0.1
    label = torch.zeros(1, 64, 64, 12)
    label[:, 20:30, 20:30, 5:8] = 1
    mask = MedSAMMask(medsam, propagate=True, jitter_px=0, batch_size=2)(volume, label)
    assert mask.any(1).any(1)[0].tolist() == [3 <= z < 10 for z in range(12)]
    assert mask[0, ..., 9].sum() == 100
    assert medsam.batches[0] == 1


def test_propagation_asks_a_callable_only_in_the_middle_slice() -> None:
    indices = []

    def source(index: int, image_slice: Tensor) -> tuple[float, ...]:
        indices.append(index)
        return (10, 10, 20, 20)

    mask = MedSAMMask(BoxIsMask(), source, propagate=True, jitter_px=0)(flat_image(1, 32, 32, 5))
    assert indices == [2]
    assert mask.any(1).any(1).all()


@pytest.mark.parametrize("shape", [(1, 40, 50), (3, 40, 50), (1, 40, 50, 4), (3, 40, 50, 4)])
@pytest.mark.parametrize("kind", ["numpy", "tensor", "meta"])
def test_the_mask_keeps_grid_type_and_meta_of_the_image(shape: tuple[int, ...], kind: str) -> None:
    tensor = torch.full(shape, 900, dtype=torch.int16)
    image: Any = {
        "numpy": tensor.numpy(),
        "tensor": tensor,
        "meta": MetaTensor(tensor, affine=AFFINE, meta={"patient": "p1"}),
    }[kind]
    label = torch.zeros(1, *shape[1:], dtype=torch.uint8)
    label[:, 10:20, 5:30] = 1
    mask = MedSAMMask(BoxIsMask(), min_iou=0)(image, label.numpy() if kind == "numpy" else label)
    assert type(mask) is type(image)
    assert mask.shape == (1, *shape[1:])
    assert mask.dtype == (np.uint8 if kind == "numpy" else torch.uint8)
    assert mask.sum() > 0
    if kind == "meta":
        assert torch.equal(mask.affine, AFFINE) and mask.meta["patient"] == "p1"


def test_the_plane_is_found_in_the_affine() -> None:
    stored_slice_first = torch.tensor([[0, 2.0, 0, 0], [0, 0, 2, 0], [5, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    volume = MetaTensor(flat_image(1, 6, 40, 50), affine=stored_slice_first)
    label = torch.zeros(1, 6, 40, 50)
    label[:, 2, 10:20, 5:30] = 1
    medsam = BoxIsMask()
    mask = MedSAMMask(medsam, jitter_px=0)(volume, label)
    assert medsam.boxes == [(40 - 20, 50 - 30, 39 - 10, 49 - 5)]  # columns run to the left, rows to the back
    assert torch.equal(mask.as_tensor(), label.to(torch.uint8))


def test_inputs_are_left_as_they_were() -> None:
    image, label = torch.rand(1, 40, 50), flat_label(40, 50)
    before = image.clone(), label.clone()
    MedSAMMask(BoxIsMask(), min_iou=0, window=(0.2, 0.5))(image, label)
    assert torch.equal(image, before[0]) and torch.equal(label, before[1])


def test_a_label_on_another_grid_is_refused_with_both_shapes() -> None:
    with pytest.raises(GridMismatchError, match=r"\(1, 40, 49\).*\(1, 40, 50\).*ResampleToMatchd"):
        MedSAMMask(BoxIsMask())(flat_image(1, 40, 50), torch.zeros(1, 40, 49))


@pytest.mark.parametrize("shape", [(40, 50), (9, 40, 50), (1, 4, 4, 4, 4)])
def test_an_image_that_is_not_channel_first_with_one_to_eight_channels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="C 1 to 8"):
        MedSAMMask(BoxIsMask(), "image")(torch.zeros(shape))


def test_wrong_options_are_refused_at_construction() -> None:
    for options in (
        {"box": "lable"},
        {"box": (1, 2, 3)},
        {"jitter_px": -1},
        {"max_parts": -1},
        {"area_range": (0.5, 0.1)},
        {"window": (3, 3)},
        {"batch_size": 0},
    ):
        with pytest.raises(ValueError, match="must be"):
            MedSAMMask(**options)
    with pytest.raises(ValueError, match="label_key"):
        MedSAMMaskd("image")
    with pytest.raises(ValueError, match="mask keys"):
        MedSAMMaskd(["t1", "t2"], box="image")


def test_a_missing_label_names_what_the_sample_has() -> None:
    with pytest.raises(ValueError, match="label_key"):
        MedSAMMask(BoxIsMask())(flat_image(1, 8, 8))
    with pytest.raises(KeyError, match="label_key 'seg'.*image"):
        MedSAMMaskd("image", label_key="seg")({"image": flat_image(1, 8, 8)})


def test_not_triggered_the_mask_is_the_labels_own_or_zeros() -> None:
    image, label = flat_image(1, 40, 50), flat_label(40, 50)
    data = MedSAMMaskd("image", label_key="label", model="/no/such.pth", prob=0.0)({"image": image, "label": label})
    assert torch.equal(data["mask"], (label > 0).to(torch.uint8))
    data = MedSAMMaskd("image", box="image", model="/no/such.pth", prob=0.0)({"image": image})
    assert data["mask"].dtype == torch.uint8 and data["mask"].shape == (1, 40, 50) and data["mask"].sum() == 0


def test_samples_with_and_without_a_trigger_collate() -> None:
    transform = MedSAMMaskd("image", label_key="label", model=BoxIsMask(), prob=0.5).set_random_state(0)
    samples = [transform({"image": MetaTensor(flat_image(1, 40, 50)), "label": flat_label(40, 50)}) for _ in range(6)]
    assert len({int(s["mask"].sum()) for s in samples}) > 1
    assert list_data_collate(samples)["mask"].shape == (6, 1, 40, 50)


def test_prob_is_the_share_of_triggered_samples() -> None:
    transform = MedSAMMaskd("image", label_key="label", model=BoxIsMask(), prob=0.25).set_random_state(0)
    fired = 0
    for _ in range(200):
        transform({"image": flat_image(1, 16, 16), "label": torch.zeros(1, 16, 16)})
        fired += transform._do_transform
    assert 30 < fired < 70


def test_several_images_of_a_sample_get_their_own_masks_with_one_jitter() -> None:
    medsam = BoxIsMask()
    transform = MedSAMMaskd(["t1", "t2"], mask_key=["m1", "m2"], label_key="label", model=medsam)
    data = transform({"t1": flat_image(1, 40, 50), "t2": flat_image(1, 40, 50) * 0.1, "label": flat_label(40, 50)})
    assert data["m1"].sum() > 0 and data["m2"].sum() == 0
    assert medsam.boxes[0] == medsam.boxes[1]


def test_the_dictionary_transform_equals_the_array_transform() -> None:
    image, label = flat_image(1, 512, 512), flat_label(512, 512)
    data = MedSAMMaskd("image", label_key="label", model=BoxIsMask()).set_random_state(7)({"image": image, "label": label})
    assert torch.equal(data["mask"], MedSAMMask(BoxIsMask()).set_random_state(7)(image, label))


def test_an_instance_pickles_small_and_copies() -> None:
    transform = MedSAMMaskd("image", label_key="label")
    assert len(pickle.dumps(transform)) < 100_000
    assert deepcopy(transform).masker.spec == ModelSpec("medsam", "tiny")


@needs_weights
def test_the_embedded_model_outlines_a_dark_disc_in_a_compose() -> None:
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
    disc = (((rows - 50) ** 2 + (columns - 70) ** 2) < 20**2).float()[None]
    image = MetaTensor(80 - disc * 60 + 5 * torch.randn(1, 96, 128, generator=torch.Generator().manual_seed(0)))
    pipeline = Compose([MedSAMMaskd("image", label_key="label", jitter_px=10)]).set_random_state(0)
    mask = pipeline({"image": image, "label": disc})["mask"].as_tensor().bool()
    dice = 2 * (mask & disc.bool()).sum() / (mask.sum() + disc.sum())
    assert dice > 0.85
    assert load_medsam(ModelSpec("medsam")).image_size == 256
