from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug.blending import soft_mask
from monai_diffaug.transforms.soft_mask import SoftMaskd


def test_each_slice_of_a_volume_is_softened_in_its_plane() -> None:
    mask = MetaTensor(torch.zeros(1, 30, 30, 5, dtype=torch.uint8), affine=torch.diag(torch.tensor([1.0, 1.0, 4.0, 1.0])))
    mask[0, 10:20, 10:20, 2] = 1
    soft = SoftMaskd("mask", width_px=2.0)({"mask": mask})["mask"]
    assert isinstance(soft, MetaTensor) and soft.dtype == torch.float32 and torch.equal(soft.affine, mask.affine)
    assert torch.allclose(soft.as_tensor()[0, :, :, 2], soft_mask(mask.as_tensor()[0, :, :, 2], 2.0), atol=1e-6)
    assert not soft[..., 1].any() and not soft[..., 3].any()


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="mode must be"):
        SoftMaskd("mask", mode="fuzzy")
