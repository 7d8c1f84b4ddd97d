import pytest
import torch

from monai_diffaug.masks.margin import with_margin


@pytest.mark.parametrize("margin_mm", [0.0, 1.0, 2.5])
def test_the_margin_is_the_euclidean_distance_on_oblong_voxels(margin_mm) -> None:
    region = torch.zeros(1, 9, 9, 9, dtype=torch.bool)
    region[0, 4, 4, 4] = region[0, 0, 0, 8] = True
    spacing = torch.tensor([3.0, 1.0, 0.5])
    points = torch.cartesian_prod(*[torch.arange(9)] * 3)
    distances = torch.stack([((points - torch.tensor(at)) * spacing).norm(dim=1) for at in ((4, 4, 4), (0, 0, 8))]).amin(0)
    assert torch.equal(with_margin(region, margin_mm, spacing.tolist()).flatten(), distances <= margin_mm)


def test_an_empty_region_stays_empty() -> None:
    assert not with_margin(torch.zeros(1, 5, 5, dtype=torch.bool), 2.0, (1.0, 1.0)).any()
