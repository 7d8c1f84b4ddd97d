from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug.masks.soft_edge import soft_mask
from monai_diffaug.transforms.soft_mask import SoftMaskd


def test_each_slice_of_a_volume_is_softened_in_its_plane() -> None:
    mask = MetaTensor(torch.zeros(1, 30, 30, 5, dtype=torch.uint8), affine=torch.diag(torch.tensor([1.0, 1.0, 4.0, 1.0])))
    mask[0, 10:20, 10:20, 2] = 1
    soft = SoftMaskd("mask", width_px=2.0)({"mask": mask})["mask"]
    assert isinstance(soft, MetaTensor) and soft.dtype == torch.float32 and torch.equal(soft.affine, mask.affine)
    assert torch.allclose(soft.as_tensor()[0, :, :, 2], soft_mask(mask.as_tensor()[0, :, :, 2], 2.0), atol=1e-6)
    assert not soft[..., 1].any() and not soft[..., 3].any()


@pytest.mark.parametrize("spacing_mm", [0.5, 2.0])
def test_a_width_in_mm_is_that_many_pixels_of_the_slices_own_spacing(spacing_mm: float) -> None:
    affine = torch.diag(torch.tensor([spacing_mm, spacing_mm, 7.0, 1.0]))
    mask = MetaTensor(torch.zeros(1, 40, 40, 3), affine=affine)
    mask[0, 10:24, 12:30, 1] = 1
    in_mm, in_px = (SoftMaskd("mask", **width)({"mask": mask})["mask"] for width in ({"width_mm": 3.0}, {"width_px": 3.0 / spacing_mm}))
    assert torch.allclose(in_mm.as_tensor(), in_px.as_tensor(), atol=1e-6)
    assert not torch.allclose(in_mm.as_tensor(), SoftMaskd("mask", width_px=3.0)({"mask": mask})["mask"].as_tensor(), atol=1e-2)


def test_without_an_affine_a_millimetre_is_a_pixel() -> None:
    mask = torch.zeros(1, 30, 30)
    mask[:, 10:20, 10:20] = 1
    assert torch.equal(SoftMaskd("mask", width_mm=2.0)({"mask": mask})["mask"], SoftMaskd("mask", width_px=2.0)({"mask": mask})["mask"])


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="mode must be"):
        SoftMaskd("mask", mode="fuzzy")
    with pytest.raises(ValueError, match="width_mm must be >= 0"):
        SoftMaskd("mask", width_mm=-1.0)


@pytest.mark.parametrize("shape", [(2, 30, 30), (30, 30), (30, 30, 5)])
def test_one_hot_masks_and_masks_without_a_channel_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a mask must be \(1, H, W\).*EnsureChannelFirstd.*argmax"):
        SoftMaskd("mask")({"mask": torch.ones(shape)})
