"""Networks of the semantic controller: start values, patch mask, and the copy of the UNet that attends to image tokens."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.models.semantic_networks import (
    SemanticAdapter,
    SemanticConfig,
    SemanticController,
    attention_dims,
    cross_attentions,
    patch_mask,
)


@pytest.fixture(scope="module")
def inpainter(random_inpainter: str) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))


@pytest.fixture(scope="module")
def config(inpainter: Inpainter) -> SemanticConfig:
    return SemanticConfig(attention_dims(inpainter.unet), feature_dim=6, text_dim=10, grid=4, width=16, heads=2, token_dim=8)


def test_a_patch_with_one_masked_pixel_is_masked() -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 17, 40] = 1
    hidden = patch_mask(mask, 8).reshape(8, 8)
    assert hidden.sum() == 1 and hidden[2, 5] == 1


def test_before_training_the_controller_returns_the_features_of_the_masked_image(config: SemanticConfig) -> None:
    controller = SemanticController(config)
    patches, pooled, text = torch.randn(2, 16, 6), torch.randn(2, 6), torch.randn(2, 5, 10)
    hidden = (torch.rand(2, 16, 1) > 0.5).float()
    same_patches, same_pooled = controller(patches, pooled, text, hidden)
    assert torch.equal(same_patches, patches) and torch.equal(same_pooled, pooled)
    torch.nn.init.normal_(controller.to_patches.weight)
    changed, _ = controller(patches, pooled, text, hidden)
    other_mask, _ = controller(patches, pooled, text, 1 - hidden)
    assert not torch.equal(changed, patches) and not torch.equal(changed, other_mask)


def test_each_cross_attention_gets_a_processor_and_self_attentions_keep_theirs(inpainter: Inpainter, config: SemanticConfig) -> None:
    adapter = SemanticAdapter(config)
    unet = adapter.attached_to(inpainter.unet).module
    names = cross_attentions(inpainter.unet)
    assert len(names) == len(adapter.processors) == sum("attn2" in name for name in inpainter.unet.attn_processors) > 0
    assert [unet.get_submodule(name).processor for name in names] == list(adapter.processors)
    for name, processor in inpainter.unet.attn_processors.items():
        assert "attn1" not in name or unet.attn_processors[name] is processor


def test_tokens_have_one_row_per_patch_and_one_for_the_image(config: SemanticConfig) -> None:
    assert SemanticAdapter(config)(torch.randn(2, 17, 6)).shape == (2, 17, 8)


def test_an_adapter_for_other_widths_is_refused(inpainter: Inpainter, config: SemanticConfig) -> None:
    other = SemanticConfig((3, *config.attention_dims[1:]), feature_dim=6, text_dim=10)
    with pytest.raises(ValueError, match=r"widths \(3, .*monai-diffaug train semantic-controller"):
        SemanticAdapter(other).attached_to(inpainter.unet)
