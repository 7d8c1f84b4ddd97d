"""Rates of the UNet and shares of the time of an edit."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.studies.speed import operator_profile as profile
from monai_diffaug.studies.speed.operator_profile import kind_of, peak_rate, shares_of, unet_rate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(random_inpainter: str) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)


def flops_of_two_branches(model: Inpainter, side: int) -> int:
    """Operations of a call of the UNet itself with the rows of ``unet_rate``."""
    rows = 2 * profile.ROWS
    latents, context = torch.zeros(rows, model.unet.config.in_channels, side, side), model.encode_text([""] * rows)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.denoise(latents, torch.tensor(500), context)
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::addmm", "linear layers"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_group_norm", "norms"),
        ("aten::gelu", "activations"),
        ("aten::copy_", "copies"),
        ("aten::add_", "other"),
    ],
)
def test_the_kind_of_an_operation_follows_from_its_name(operation: str, kind: str) -> None:
    assert kind_of(operation) == kind


@pytest.mark.slow
def test_the_shares_add_up_and_convolutions_have_one(small: Inpainter) -> None:
    shares = shares_of(small, 32)["shares"]
    assert sum(shares.values()) == pytest.approx(1.0) and shares["convolutions"] > 0.02


def test_a_share_of_the_peak_is_a_rate_over_a_rate(small: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "CPU_MATRIX", 128)
    peak = peak_rate(torch.float32, CPU, 3)
    row = unet_rate(small, 32, 3, peak)
    assert row["rows"] == 32 and row["share_of_peak"] == pytest.approx(row["gflop_per_second"] / peak)
    assert row["gflop"] == pytest.approx(flops_of_two_branches(small, 8) / 1e9, rel=0.35)  # the branches share the first part
    double = unet_rate(small, 64, 1, peak)
    assert 3.5 < double["gflop"] / row["gflop"] < 4.5
