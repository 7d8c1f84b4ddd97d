"""The batched mask decoder against that of ``segment_anything``, image by image."""

from __future__ import annotations

import torch

from monai_diffaug.models.medsam import prompt_with_boxes
from monai_diffaug.models.sam_decoder import decode_boxes
from monai_diffaug.models.sam_weights import TINY_CONFIG, build_sam

CONFIG = {
    **TINY_CONFIG,
    "image_size": 64,
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "global_attn_indexes": [0],
    "prompt_dim": 32,
    "mask_in_chans": 16,
    "decoder_mlp_dim": 32,
}


def test_a_batch_of_images_equals_the_decoder_image_by_image() -> None:
    torch.manual_seed(0)
    sam = build_sam(CONFIG).eval().requires_grad_(False)
    embeddings = torch.randn(3, 32, 8, 8)
    boxes = torch.tensor([[3.0, 4, 30, 40], [0, 0, 60, 50], [20, 20, 40, 44]])
    for box_as_mask in (False, True):
        logits, quality = decode_boxes(sam, embeddings, *prompt_with_boxes(sam, boxes, box_as_mask))
        assert logits.shape == (3, 1, 32, 32) and quality.shape == (3, 1)
        for i in range(3):
            sparse, dense = prompt_with_boxes(sam, boxes[i : i + 1], box_as_mask)
            expected = sam.mask_decoder(embeddings[i : i + 1], sam.prompt_encoder.get_dense_pe(), sparse, dense, False)
            torch.testing.assert_close(logits[i : i + 1], expected[0], atol=2e-5, rtol=2e-5)
            torch.testing.assert_close(quality[i : i + 1], expected[1], atol=2e-5, rtol=2e-5)
        assert (logits[0] - logits[1]).abs().max() > 1e-3
