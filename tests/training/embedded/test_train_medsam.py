"""The MedSAM recipe: what it draws, and that its losses and gradients reach everything that has to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from monai_diffaug.models.medsam import TINY_CONFIG, build_sam, load_medsam
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.embedded import train_medsam as recipe
from monai_diffaug.training.embedded.datasets import data_root
from monai_diffaug.training.embedded.train_medsam import (
    Batch,
    PromptSampler,
    batch_loss,
    intersection_over_union,
    mask_loss,
    start,
    tight_box,
    train,
)

needs_data = pytest.mark.skipif(data_root() is None, reason="the training data are not on this machine")


def small_batch() -> Batch:
    targets = torch.zeros(1, 2, 256, 256)
    targets[:, :, 80:140, 60:160] = 1
    boxes = torch.tensor([[[58.0, 78, 162, 142], [200, 200, 230, 230]]])
    return Batch(torch.rand(1, 3, 256, 256), targets, boxes, torch.tensor([[True, False]]))


def test_the_tight_box_has_inclusive_corners() -> None:
    mask = np.zeros((20, 30), bool)
    mask[4:9, 10:12] = True
    assert tight_box(mask) == (10, 4, 11, 8)


def test_the_loss_of_a_perfect_mask_is_small_and_of_an_inverted_one_large() -> None:
    target = torch.zeros(1, 1, 64, 64)
    target[..., 20:40, 20:40] = 1
    logits = torch.nn.functional.avg_pool2d(target, 2) * 20 - 10
    assert mask_loss(logits, target) < 0.01
    assert mask_loss(-logits, target) > 2
    assert intersection_over_union(logits, target) == 1 and intersection_over_union(-logits, target) == 0


def test_a_small_finding_weighs_as_much_as_a_large_one() -> None:
    small, large = torch.zeros(1, 1, 256, 256), torch.zeros(1, 1, 256, 256)
    small[..., :16, :16] = 1
    large[..., :128, :128] = 1
    nothing = torch.full((1, 1, 128, 128), -4.0)
    assert 0.5 < float(mask_loss(nothing, small) / mask_loss(nothing, large)) < 2


def test_gradients_reach_the_relative_positions_and_every_part_of_the_prompt() -> None:
    torch.manual_seed(0)
    sam = build_sam(TINY_CONFIG)
    loss, overlaps = batch_loss(sam, small_batch())
    loss.backward()
    assert overlaps.shape == (1,)
    for name in (
        "image_encoder.blocks.0.attn.rel_pos_h",
        "image_encoder.blocks.3.attn.rel_pos_w",
        "image_encoder.pos_embed",
        "prompt_encoder.mask_downscaling.0.weight",
        "prompt_encoder.point_embeddings.2.weight",
        "mask_decoder.iou_prediction_head.layers.0.weight",
    ):
        assert sam.get_parameter(name).grad.abs().sum() > 0, name


def test_a_decoy_box_teaches_the_iou_head_but_not_the_mask() -> None:
    torch.manual_seed(0)
    sam = build_sam(TINY_CONFIG)
    batch = small_batch()
    batch.real[:] = False
    batch_loss(sam, batch)[0].backward()
    assert sam.mask_decoder.iou_prediction_head.layers[0].weight.grad.abs().sum() > 0
    assert sam.mask_decoder.output_hypernetworks_mlps[0].layers[0].weight.grad.abs().sum() == 0


@needs_data
def test_a_batch_holds_boxes_around_its_masks_and_images_in_the_unit_range() -> None:
    batch = PromptSampler("train", 0).draw(6)
    assert batch.images.shape == (6, 3, 256, 256) and batch.images.min() == 0 and batch.images.max() == 1
    assert batch.boxes.min() >= 0 and batch.boxes.max() <= 256
    for masks, boxes, real in zip(batch.targets, batch.boxes, batch.real, strict=True):
        for mask, box, counts in zip(masks, boxes, real, strict=True):
            x0, y0, x1, y1 = box.tolist()
            assert x0 < x1 and y0 < y1
            inside = mask[max(int(y0) - 3, 0) : int(y1) + 4, max(int(x0) - 3, 0) : int(x1) + 4].sum()
            assert (inside / mask.sum() > 0.9) if counts else inside == 0


@needs_data
def test_the_same_seed_draws_the_same_batch() -> None:
    first, second = PromptSampler("validation", 5).draw(2), PromptSampler("validation", 5).draw(2)
    assert torch.equal(first.images, second.images) and torch.equal(first.boxes, second.boxes)


@needs_data
def test_a_data_set_that_is_left_out_is_never_drawn() -> None:
    everything, rest = PromptSampler("validation", 0), PromptSampler("validation", 0, ["breast_ultrasound"])
    assert len(rest.sources) == len(everything.sources) - 1
    assert everything.shares.max() == pytest.approx(0.4) and np.allclose(rest.shares, 1 / len(rest.sources))
    with pytest.raises(ValueError, match="no data set 'breasts'"):
        PromptSampler("validation", 0, ["breasts"])


@needs_data
def test_a_kept_encoder_is_bit_identical_after_training_and_the_decoder_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class TwelveSteps:  # the average turns -0 into 0 from the tenth on
        def __init__(self, minutes: float, progress: float) -> None:
            self.steps = -1

        def progress(self) -> float:
            self.steps += 1
            return self.steps / 12

    monkeypatch.setattr(recipe, "Clock", TwelveSteps)
    before = load_medsam(ModelSpec("medsam", "tiny")).sam.state_dict()
    train(tmp_path, minutes=1, batch_size=1, model="tiny", keep_encoder=True)
    after = load_medsam(ModelSpec("medsam", str(tmp_path / "medsam"))).sam.state_dict()
    assert before.keys() == after.keys()
    for name, weights in before.items():
        if name.startswith("image_encoder."):
            assert weights.numpy().tobytes() == after[name].numpy().tobytes(), name
    assert any(not torch.equal(weights, after[name]) for name, weights in before.items() if name.startswith("mask_decoder."))


def test_an_encoder_can_only_be_kept_where_a_model_is_given() -> None:
    with pytest.raises(ValueError, match="give the model too"):
        start(None, keep_encoder=True)
    trained = {name.split(".")[0] for name, p in start("tiny", keep_encoder=True).named_parameters() if p.requires_grad}
    assert trained == {"mask_decoder", "prompt_encoder"}


@needs_data
def test_the_share_of_breast_ultrasound_can_be_chosen() -> None:
    shares = PromptSampler("validation", 0, breast_share=0.7).shares
    assert shares.max() == pytest.approx(0.7) and shares.sum() == pytest.approx(1)
