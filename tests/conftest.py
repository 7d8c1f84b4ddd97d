"""Shared fixtures: small random-weight models in the real folder layouts, and real data as packs and as datalists."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

NO_DATA = "no real data: set MONAI_DIFFAUG_DATA to the folder of the packs, or put them into ../shared/data"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the tests that ran on no data."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NO_DATA in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests were skipped, {NO_DATA}", yellow=True)


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
    """Folder of the packs of real images; without it the test is skipped."""
    variable = os.environ.get("MONAI_DIFFAUG_DATA")
    folder = Path(variable) if variable else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(NO_DATA)
    return folder


@pytest.fixture(scope="session")
def packed(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The datalist of some data sets of real images: ``packed("breast_ultrasound", "spleen_ct")``. Each is unpacked once."""
    from monai_diffaug.training.embedded.pack_datalist import VOLUMES, datalist_rows, volume_rows

    folder = tmp_path_factory.mktemp("packed")
    rows: dict[str, dict[str, list[dict[str, object]]]] = {}

    def datalist(*names: str) -> Path:
        for name in names:
            if name not in rows:
                rows[name] = volume_rows(real_data, folder) if name == VOLUMES else datalist_rows(real_data, name, folder)
        file = folder / f"{'-'.join(names)}.json"
        if not file.is_file():
            sections = ("training", "validation", VOLUMES)
            file.write_text(json.dumps({section: [row for name in names for row in rows[name].get(section, [])] for section in sections}))
        return file

    return datalist


@pytest.fixture(scope="session")
def user_datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datalist as a user may write it: pictures of several sizes and a volume, two findings and normal images, no data sets or groups."""
    import nibabel
    import numpy as np
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("user"), np.random.RandomState(0)
    ys, xs = np.indices((112, 112))

    def picture(finding: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        centre = rng.randint(30, 70, 2)
        label = (np.hypot(ys - centre[0], xs - centre[1]) < 11) * finding
        image = np.array([110, 40, 200])[label] + rng.randint(0, 30, label.shape)
        return image[:height].astype(np.uint8), label[:height].astype(np.uint8)

    def entries(section: str) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        for i in range(12):
            image, label = picture(i % 3, 112 - 8 * (i % 2))
            names = {role: f"{section}{i}{suffix}" for role, suffix in (("image", ".png"), ("label", "_label.png"))}
            for role, pixels in (("image", image), ("label", label)):
                Image.fromarray(pixels).save(folder / names[role])
            rows.append({**names, "finding": "normal tissue"} if i % 3 == 0 else dict(names))
        slices = [picture(1, 112) for _ in range(4)]
        for role, stack in (("image", [image * 4.0 - 400 for image, _ in slices]), ("label", [slices[0][1]] * 4)):
            nibabel.Nifti1Image(np.stack(stack, -1).astype(np.int16), np.eye(4)).to_filename(folder / f"{section}_{role}.nii.gz")
        return [*rows, {role: f"{section}_{role}.nii.gz" for role in ("image", "label")}]

    words = {"modality": "ultrasound", "anatomy": "thyroid", "finding": {"1": "benign nodule", "2": "malignant nodule"}}
    file = folder / "datalist.json"
    file.write_text(json.dumps({**words, **{section: entries(section) for section in ("training", "validation")}}))
    return file
