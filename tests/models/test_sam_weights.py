"""Sams of any size: sizes from the weights, names of transformers, and checkpoints that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from monai_diffaug.models.medsam import load_medsam
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.models.sam_weights import TINY_CONFIG, build_sam, config_of, load_sam, sam_names, save_sam
from tests.models.sam_of_transformers import sam_of_transformers

SMALL_CONFIG = {
    **TINY_CONFIG,
    "image_size": 64,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
    "global_attn_indexes": [1],
    "window_size": 4,
    "prompt_dim": 32,
    "mask_in_chans": 16,
    "decoder_heads": 8,
    "decoder_mlp_dim": 32,
}


def test_the_sizes_of_vit_b_l_and_h_are_read_from_the_weights() -> None:
    from segment_anything import sam_model_registry

    for name, dim, heads, depth in (("vit_b", 768, 12, 12), ("vit_l", 1024, 16, 24), ("vit_h", 1280, 16, 32)):
        with torch.device("meta"):
            sam = sam_model_registry[name]()
        config = config_of(sam.state_dict())
        assert (config["embed_dim"], config["num_heads"], config["depth"]) == (dim, heads, depth)
        assert config["image_size"] == 1024 and config["window_size"] == 14 and config["decoder_mlp_dim"] == 2048
        assert config["global_attn_indexes"] == [depth // 4 * k - 1 for k in (1, 2, 3, 4)]


def test_the_config_of_a_small_sam_rebuilds_it() -> None:
    sam = build_sam(SMALL_CONFIG)
    config = config_of(sam.state_dict())
    assert config == {name: value for name, value in SMALL_CONFIG.items() if name != "box_as_mask"}
    assert build_sam(config).state_dict().keys() == sam.state_dict().keys()


def test_a_saved_sam_is_loaded_with_its_values_in_half_precision(tmp_path: Path) -> None:
    sam = build_sam(SMALL_CONFIG)
    save_sam(sam, SMALL_CONFIG, tmp_path)
    loaded = load_sam(tmp_path / "model.safetensors", SMALL_CONFIG).state_dict()
    assert all(torch.equal(value.half(), loaded[name].half()) for name, value in sam.state_dict().items())


@pytest.mark.parametrize("fault", ["missing", "left over"])
def test_a_checkpoint_with_a_weight_missing_or_left_over_is_refused(tmp_path: Path, fault: str) -> None:
    weights = build_sam(SMALL_CONFIG).state_dict()
    if fault == "missing":
        del weights["mask_decoder.iou_token.weight"]
    else:
        weights["mask_decoder.extra.weight"] = torch.zeros(1)
    torch.save(weights, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match=rf"sam\.pth does not fit .*1 weights are {fault} \(mask_decoder"):
        load_sam(tmp_path / "sam.pth")


def test_weights_under_the_names_of_transformers_give_the_same_masks() -> None:
    theirs = sam_of_transformers()
    weights = sam_names(theirs.state_dict())
    sam = build_sam(config_of(weights))
    sam.load_state_dict(weights)
    pixels, box = torch.rand(1, 3, 64, 64), torch.tensor([[5.0, 6, 40, 50]])
    with torch.no_grad():
        expected = theirs(pixel_values=pixels, input_boxes=box[None], multimask_output=False)
        embedding = sam.eval().image_encoder(pixels)
        sparse, dense = sam.prompt_encoder(None, box, None)
        logits, quality = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, False)
    torch.testing.assert_close(logits[0], expected.pred_masks[0, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(quality[0], expected.iou_scores[0, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("content", [{"conv.weight": torch.zeros(2, 2)}, {"epoch": 3}, [torch.zeros(1)]])
def test_weights_of_another_architecture_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth .* segment_anything Sam"):
        load_medsam(ModelSpec("medsam", str(tmp_path / "other.pth")))
