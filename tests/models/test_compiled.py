from __future__ import annotations

import shutil

import pytest
import torch

from monai_diffaug.edit.options import InpaintOptions, Run
from monai_diffaug.models import compiled
from monai_diffaug.models.compiled import compile_regions
from monai_diffaug.models.registry import spec_of
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint


def one_block() -> torch.nn.Module:
    from diffusers.models.resnet import ResnetBlock2D

    torch.manual_seed(0)
    return torch.nn.Sequential(ResnetBlock2D(in_channels=8, out_channels=8, temb_channels=None, groups=4), torch.nn.Conv2d(8, 4, 1)).eval()


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
@pytest.mark.slow
def test_a_compiled_block_returns_the_same_and_keeps_the_names_of_its_weights() -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = one_block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.block(x, None))

    network = Network().eval()
    names, x = list(network.state_dict()), torch.randn(2, 8, 16, 16)
    with torch.no_grad():
        before = network(x)
        assert compile_regions(network) == 1
        after = network(x)
    assert torch.allclose(before, after, atol=1e-5) and list(network.state_dict()) == names


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"g\+\+ or clang"):
        compile_regions(one_block())


def test_a_compiled_model_has_its_own_spec_and_a_live_one_is_not_compiled(random_inpainter) -> None:
    assert spec_of("inpainter", "tiny") != spec_of("inpainter", "tiny", compile=True)
    from monai_diffaug.models.inpainter import load_inpainter
    from monai_diffaug.models.registry import ModelSpec

    live = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    with pytest.raises(ValueError, match="live object"):
        DiffusionLocalInpaint(live, options=InpaintOptions(run=Run(compile=True))).apply(
            torch.rand(1, 64, 64), torch.ones(1, 64, 64), "x", seed=1
        )
