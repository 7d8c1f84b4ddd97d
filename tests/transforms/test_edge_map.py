from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, ScaleIntensityd

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.masks.edges import control_image, outline
from monai_diffaug.transforms.edge_map import EdgeMap, EdgeMapd


def volume_and_mask() -> tuple[MetaTensor, MetaTensor]:
    affine = torch.diag(torch.tensor([1.0, 1.0, 4.0, 1.0]))
    image = MetaTensor(torch.rand(1, 24, 30, 5, generator=torch.Generator().manual_seed(0)) * 400 - 100, affine=affine)
    mask = MetaTensor(torch.zeros(1, 24, 30, 5, dtype=torch.uint8), affine=affine)
    mask[0, 8:16, 10:20, 2] = 1
    return image, mask


def test_the_outline_of_the_mask_is_always_drawn() -> None:
    mask = torch.zeros(1, 32, 32)
    mask[:, 10:20, 12:24] = 1
    for method in ("canny", "scharr"):
        control = EdgeMap(method)(torch.full((1, 32, 32), 50.0), mask)
        assert torch.equal(torch.as_tensor(control), outline(mask[None])[0])


def test_a_label_of_minus_one_gets_no_outline_and_keeps_the_edges_in_it() -> None:
    image = torch.zeros(1, 32, 32)
    image[:, :, 8:] = 100
    label = torch.zeros(1, 32, 32)
    label[:, 10:20, 4:24] = -1
    plain = EdgeMap(keep_inside=False)(image, torch.zeros(1, 32, 32))
    assert plain.any() and torch.equal(EdgeMap(keep_inside=False)(image, label), plain)
    assert EdgeMap()(image.bool(), label > -1).any()  # masks may be bool


def test_a_volume_is_taken_slice_by_slice_and_keeps_its_meta_data() -> None:
    image, mask = volume_and_mask()
    before = image.clone()
    out = EdgeMapd("image", window=(-100, 300))({"image": image, "mask": mask})
    edges = out["edges"]
    assert isinstance(edges, MetaTensor) and edges.dtype == torch.float32 and edges.shape == (1, 24, 30, 5)
    assert torch.equal(edges.affine, image.affine) and torch.equal(out["image"], before)
    windowed = ((image.as_tensor() + 100) / 400)[..., 2]
    assert torch.equal(edges.as_tensor()[..., 2], control_image(windowed[None], mask.as_tensor()[None, ..., 2])[0])
    assert not edges.isnan().any() and edges.min() >= 0 and edges.max() == 1


def test_traced_operations_of_the_image_are_kept() -> None:
    image, mask = volume_and_mask()
    image.push_applied_operation({"class": "Flip", "id": 1})
    assert EdgeMap()(image, mask).applied_operations == image.applied_operations


def test_numpy_colour_pictures_give_numpy_edges() -> None:
    image = np.random.RandomState(0).randint(0, 255, (3, 20, 28), dtype=np.uint8)
    edges = EdgeMap()(image, np.zeros((1, 20, 28), np.uint8))
    assert isinstance(edges, np.ndarray) and edges.shape == (1, 20, 28) and edges.dtype == np.float32


def test_sixteen_bit_images_and_labels_are_taken() -> None:
    image = np.random.RandomState(0).randint(0, 60000, (1, 16, 16)).astype(np.uint16)
    mask = np.zeros((1, 16, 16), np.uint16)
    mask[:, 4:9, 4:9] = 3
    edges = EdgeMap(keep_inside=False)(image, mask)
    assert edges[0, 4, 4:9].min() == 1 and not edges[0, 5:8, 5:8].any()


def test_the_result_is_the_same_whatever_the_intensity_unit() -> None:
    image = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 40, 40)
    assert torch.equal(torch.as_tensor(EdgeMap()(image, mask)), torch.as_tensor(EdgeMap()(image * 2048 - 200, mask)))  # no Hounsfield units


def test_a_module_can_detect_edges_and_is_not_pickled_with_the_transform() -> None:
    class Sums(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.Parameter(torch.ones(500_000))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            assert image.shape[1] == 3
            return image.mean(1, keepdim=True) * self.weights[0]

    network = Sums()
    transform = EdgeMap(network, window=(0, 1))
    image = torch.rand(1, 8, 8)
    assert torch.allclose(torch.as_tensor(transform(image, torch.zeros(1, 8, 8))), image, atol=1e-6)
    assert len(pickle.dumps(transform)) < 100_000 and not network.weights.requires_grad


def test_a_detector_that_changes_the_size_is_refused() -> None:
    with pytest.raises(ValueError, match="edge detector returned"):
        EdgeMap(lambda image: image[:, :1, ::2])(torch.rand(1, 8, 8), torch.zeros(1, 8, 8))


def hed_of_the_users_own(pictures: torch.Tensor) -> torch.Tensor:
    """What a user's detector looks like: three channels in [0, 1] in, one map in [0, 1] out."""
    assert pictures.shape[1] == 3 and float(pictures.min()) >= 0 and float(pictures.max()) <= 1
    return torch.sigmoid(8 * (pictures - pictures.mean()).mean(1, keepdim=True)) * 0.5


def test_a_callable_detector_takes_the_place_of_canny_in_the_dictionary_form_and_the_outline_is_still_drawn() -> None:
    image, mask = volume_and_mask()
    edges = EdgeMapd("image", method=hed_of_the_users_own, window=(-100, 300))({"image": image, "mask": mask})["edges"]
    drawn = outline(mask.as_tensor()[0].permute(2, 0, 1)[:, None].float())[:, 0].permute(1, 2, 0).bool()
    assert isinstance(edges, MetaTensor) and edges.shape == image.shape and bool((edges[0][drawn] == 1).all())
    assert 0 < float(edges[0][~drawn].max()) <= 0.5
    assert len(pickle.dumps(EdgeMapd("image", method=hed_of_the_users_own))) < 10_000


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (lambda pictures: [pictures[:, :1]] * 6, "returned a list; expected a tensor"),
        (lambda pictures: pictures[:, :1].numpy(), "returned a ndarray"),
        (lambda pictures: pictures[:, :1] * 255, "from 0 to 255.*divide grey values"),
        (lambda pictures: pictures[:, :1] * 8 - 4, "from -4 to 4.*sigmoid"),
        (lambda pictures: pictures[:, :1] * float("nan"), "nan"),
        (lambda pictures: pictures, "returned .1, 3, 8, 8."),
    ],
)
def test_a_detector_that_returns_something_else_is_refused_with_what_to_do(detector, message) -> None:
    ramp = torch.linspace(0, 1, 64).reshape(1, 8, 8)
    with pytest.raises(ValueError, match=message):
        EdgeMapd("image", method=detector, window=(0, 1))({"image": ramp, "mask": torch.zeros(1, 8, 8)})


def test_what_is_neither_a_name_nor_a_callable_is_refused() -> None:
    with pytest.raises(ValueError, match="callable, got a float"):
        EdgeMapd("image", method=0.5)


def test_it_is_deterministic_so_a_cache_may_hold_it() -> None:
    from monai.transforms import RandomizableTrait

    image, mask = volume_and_mask()
    transform = Compose([ScaleIntensityd("image"), EdgeMapd("image")])
    assert not isinstance(EdgeMapd("image"), RandomizableTrait)
    assert torch.equal(transform({"image": image, "mask": mask})["edges"], transform({"image": image, "mask": mask})["edges"])


def test_a_sample_without_the_image_is_skipped_with_or_without_a_mask() -> None:
    draw = EdgeMapd("image", allow_missing_keys=True)
    assert draw({"label": 1}) == {"label": 1}
    with pytest.raises(KeyError, match="no 'mask'"):
        draw({"image": torch.rand(1, 8, 8)})


def test_wrong_input_is_refused_with_what_to_do() -> None:
    with pytest.raises(GridMismatchError, match="EnsureChannelFirstd"):
        EdgeMap()(torch.rand(8, 8), torch.zeros(8, 8))
    with pytest.raises(GridMismatchError, match="ResampleToMatchd"):
        EdgeMap()(torch.rand(1, 8, 8), torch.zeros(1, 8, 9))
    with pytest.raises(ValueError, match="nan_to_num"):
        EdgeMap()(torch.full((1, 8, 8), float("nan")), torch.zeros(1, 8, 8))
    with pytest.raises(KeyError, match="no 'mask'"):
        EdgeMapd("image")({"image": torch.rand(1, 8, 8)})
    with pytest.raises(ValueError, match="one key for each"):
        EdgeMapd(["a", "b"], output_key="edges")
    with pytest.raises(ValueError, match="method must be"):
        EdgeMap("hed")
    with pytest.raises(ValueError, match="low <= high"):
        EdgeMap(low=0.3, high=0.2)
