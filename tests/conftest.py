"""Shared fixtures: small random-weight models in the real folder layouts, and the folder of real data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_diffaug.training.embedded.datasets import data_root


def build_inpainter_folder(folder: Path, in_channels: int) -> Path:
    """A diffusers folder of the embedded architecture at a third of its width, with random weights."""
    from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline, UNet2DConditionModel

    from monai_diffaug.training.embedded.architectures import build_scheduler
    from monai_diffaug.training.embedded.text_encoder import build_text_encoder, build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer(folder / "tokenizer")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_inpainter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a 9-channel inpainter with random weights (64 px, factor 4)."""
    return str(build_inpainter_folder(tmp_path_factory.mktemp("inpainter9"), 9))


@pytest.fixture(scope="session")
def random_inpainter_4ch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a plain 4-channel text-to-image model with random weights (64 px, factor 4)."""
    return str(build_inpainter_folder(tmp_path_factory.mktemp("inpainter4"), 4))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real images; tests that need it are skipped where it is not."""
    folder = data_root()
    if folder is None:
        pytest.skip("no real data: set MONAI_DIFFAUG_DATA or put them under ../shared/data")
    return folder
