from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Flip

from monai_diffaug.edit.options import InpaintOptions, Noise, Region, Run, SoftEdge
from monai_diffaug.errors import GridMismatchError
from monai_diffaug.models import registry
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.lean_unet import LeanUnet
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

PROMPT = "ultrasound of breast, malignant mass"


def picture(channels: int = 1, size: tuple[int, ...] = (70, 90)) -> torch.Tensor:
    return torch.rand(channels, *size, generator=torch.Generator().manual_seed(0)) * 100 + 20


def square_mask(size: tuple[int, ...] = (70, 90)) -> torch.Tensor:
    mask = torch.zeros(1, *size)
    mask[:, 30:44, 40:52] = 1
    return mask


def volume_mask() -> torch.Tensor:
    mask = torch.zeros(1, 40, 36, 7)
    mask[:, 15:25, 12:24, 2:5] = 1
    return mask


@pytest.fixture
def fast(random_inpainter: str) -> dict[str, object]:
    return {"model": random_inpainter, "num_inference_steps": 2}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(70, 90), (40, 36, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, torch.uint8, torch.float16])
def test_voxels_outside_the_soft_mask_are_bit_identical_and_inside_changes(fast, channels, size, dtype) -> None:
    image = picture(channels, size).to(dtype)
    mask = square_mask(size) if len(size) == 2 else volume_mask()
    before = image.clone()
    edit = DiffusionLocalInpaint(**fast, options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=0))).apply(image, mask, PROMPT, seed=4)
    inside = (mask > 0).expand_as(image)
    assert edit.image.dtype == dtype
    assert torch.equal(edit.image[~inside], image[~inside])
    assert not torch.equal(edit.image[inside], image[inside])
    assert torch.equal(image, before)


def test_a_soft_edge_changes_nothing_beyond_its_skirt(fast) -> None:
    image, mask = picture(), square_mask()
    edit = DiffusionLocalInpaint(**fast, options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=8.0))).apply(image, mask, PROMPT, seed=4)
    changed = (edit.image != image)[0].nonzero()
    assert changed[:, 0].min() >= 30 - 4 and changed[:, 0].max() <= 43 + 4
    assert bool((edit.image != image)[0, 29, 44:50].any())


@pytest.mark.parametrize("noise_rho", [0.0, 0.6])
def test_the_result_does_not_depend_on_the_slice_batch_size(fast, noise_rho) -> None:
    results = [
        DiffusionLocalInpaint(**fast, options=InpaintOptions(run=Run(slice_batch_size=n), noise=Noise(rho=noise_rho)))
        .apply(picture(1, (40, 36, 7)), volume_mask(), PROMPT, seed=11)
        .image
        for n in (1, 2, 8)
    ]
    assert torch.allclose(results[0], results[1], atol=1e-3) and torch.allclose(results[0], results[2], atol=1e-3)
    assert not torch.allclose(results[0], picture(1, (40, 36, 7)), atol=1e-3)


def test_the_result_depends_on_the_seed_and_not_on_the_global_generator(fast) -> None:
    transform = DiffusionLocalInpaint(**fast)
    torch.manual_seed(1)
    first = transform.apply(picture(), square_mask(), PROMPT, seed=1).image
    torch.manual_seed(2)
    assert torch.equal(transform.apply(picture(), square_mask(), PROMPT, seed=1).image, first)
    assert not torch.equal(transform.apply(picture(), square_mask(), PROMPT, seed=2).image, first)


def test_the_prompt_reaches_the_model(fast) -> None:
    transform = DiffusionLocalInpaint(**fast)
    one = transform.apply(picture(), square_mask(), "malignant mass", seed=1).image
    assert not torch.equal(one, transform.apply(picture(), square_mask(), "normal tissue", seed=1).image)


def test_the_same_anatomy_gives_the_same_result_however_it_is_stored(fast) -> None:
    transform = DiffusionLocalInpaint(**fast)
    image = MetaTensor(picture(1, (40, 36, 7)), affine=torch.eye(4))
    mask = MetaTensor(volume_mask(), affine=torch.eye(4))
    expected = transform.apply(image, mask, PROMPT, seed=3).image
    order = (0, 2, 3, 1)  # stored A, S, R with A flipped
    affine = torch.zeros(4, 4)
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = -1, 1, 1, 1

    def stored(volume: MetaTensor) -> MetaTensor:
        return MetaTensor(volume.as_tensor().permute(order).flip(1), affine=affine)

    got = transform.apply(stored(image), stored(mask), PROMPT, seed=3).image
    assert torch.equal(got.as_tensor(), expected.as_tensor().permute(order).flip(1))


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor, MetaTensor])
def test_type_and_meta_survive(fast, make) -> None:
    image = make(picture().numpy().astype(np.float32))
    if isinstance(image, MetaTensor):
        image = Flip(1)(MetaTensor(image, affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])), meta={"patient": "a"}))
    edit = DiffusionLocalInpaint(**fast).apply(image, make(square_mask().numpy()), PROMPT, seed=1)
    assert type(edit.image) is type(image)
    if isinstance(image, MetaTensor):
        assert torch.equal(edit.image.affine, image.affine)
        assert edit.image.meta["patient"] == "a"
        assert edit.image.applied_operations == image.applied_operations


def test_uint16_arrays_are_repainted_in_uint16(fast) -> None:
    image = (picture().numpy() * 500).astype(np.uint16)
    edit = DiffusionLocalInpaint(**fast).apply(image, square_mask().numpy(), PROMPT, seed=1)
    assert edit.image.dtype == np.uint16 and (edit.image != image).any()


def test_the_label_is_painted_where_the_mask_is(fast) -> None:
    label = torch.full((1, 70, 90), 3, dtype=torch.uint8)
    edit = DiffusionLocalInpaint(**fast, label_value=2).apply(picture(), square_mask(), PROMPT, label, seed=1)
    assert torch.equal(edit.label == 2, square_mask() > 0)
    assert bool((label == 3).all())


def test_an_empty_mask_leaves_the_sample_untouched_and_says_so(fast) -> None:
    image = picture()
    edit = DiffusionLocalInpaint(**fast).apply(image, torch.zeros(1, 70, 90), PROMPT, seed=1)
    assert edit.image is image
    assert edit.record["applied"] is False and edit.record["reason"] == "empty mask"


def test_a_mask_on_another_grid_names_both_shapes_and_the_way_out(fast) -> None:
    with pytest.raises(GridMismatchError, match=r"\(1, 60, 90\).*\(1, 70, 90\).*ResampleToMatchd"):
        DiffusionLocalInpaint(**fast).apply(picture(), torch.ones(1, 60, 90), PROMPT, seed=1)


def test_non_finite_voxels_are_refused(fast) -> None:
    image = picture()
    image[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="non-finite"):
        DiffusionLocalInpaint(**fast).apply(image, square_mask(), PROMPT, seed=1)


def test_passthrough_returns_the_input_and_the_reason(fast) -> None:
    image = picture()
    image[0, 0, 0] = float("nan")
    edit = DiffusionLocalInpaint(**fast, on_error="passthrough").apply(image, square_mask(), PROMPT, seed=1)
    assert edit.image is image
    assert edit.record["applied"] is False and "non-finite" in str(edit.record["reason"])


def test_a_model_that_returns_nan_leaves_the_sample_untouched(fast, monkeypatch) -> None:
    monkeypatch.setattr(Inpainter, "decode", lambda self, z: torch.full((len(z), 3, 64, 64), float("nan")))
    image = picture()
    edit = DiffusionLocalInpaint(**fast).apply(image, square_mask(), PROMPT, seed=1)
    assert edit.image is image and "non-finite" in str(edit.record["reason"])


def test_out_of_memory_halves_the_batch_without_changing_the_result(fast, monkeypatch) -> None:
    image, mask = picture(1, (40, 36, 7)), volume_mask()
    expected = DiffusionLocalInpaint(**fast).apply(image, mask, PROMPT, seed=5).image
    decode, sizes = Inpainter.decode, []

    def scarce(self: object, latents: torch.Tensor) -> torch.Tensor:
        sizes.append(len(latents))
        if len(latents) > 1:
            raise torch.OutOfMemoryError("no memory")
        return decode(self, latents)

    monkeypatch.setattr(Inpainter, "decode", scarce)
    got = DiffusionLocalInpaint(**fast).apply(image, mask, PROMPT, seed=5).image
    assert sizes == [3, 1, 1, 1]
    assert torch.allclose(got, expected, atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (17, 31), (64, 64)])
@pytest.mark.parametrize("roi", [True, False])
def test_odd_and_tiny_sizes_work_and_a_mask_may_cover_all(fast, size, roi) -> None:
    image = torch.rand(1, *size) * 10
    edit = DiffusionLocalInpaint(**fast, options=InpaintOptions(region=Region(whole_slice=not roi))).apply(
        image, torch.ones(1, *size), PROMPT, seed=1
    )
    assert edit.image.shape == image.shape and edit.record["applied"] is True


def test_a_constant_image_works(fast) -> None:
    edit = DiffusionLocalInpaint(**fast).apply(torch.full((1, 70, 90), 7.0), square_mask(), PROMPT, seed=1)
    assert bool(torch.isfinite(edit.image).all())


def test_the_model_is_loaded_once(fast) -> None:
    registry.clear()
    transforms = [DiffusionLocalInpaint(**fast) for _ in range(2)]
    for transform in transforms:
        transform.apply(picture(), square_mask(), PROMPT, seed=1)
    assert registry.load_count(transforms[0].spec) == 1


def test_four_channel_models_repaint_too(random_inpainter_4ch) -> None:
    image = picture()
    edit = DiffusionLocalInpaint(
        random_inpainter_4ch, num_inference_steps=3, options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=0))
    ).apply(image, square_mask(), PROMPT, seed=1)
    outside = square_mask() == 0
    assert torch.equal(edit.image[outside], image[outside]) and not torch.equal(edit.image, image)


@pytest.mark.parametrize(
    ("option", "value"),
    [("strength", 0.0), ("num_inference_steps", 0), ("plane", "oblique"), ("on_error", "ignore"), ("window", (1, 0))],
)
def test_an_option_out_of_range_is_refused_at_construction(option, value) -> None:
    with pytest.raises(ValueError, match=str(option) if option != "window" else "low < high"):
        DiffusionLocalInpaint(**{option: value})


def test_a_batch_of_samples_equals_the_samples_one_by_one_with_one_model_call_per_step(fast, monkeypatch) -> None:
    images = [picture(), picture(3, (40, 36, 7)), picture().to(torch.int16), picture()]
    masks = [square_mask(), volume_mask(), square_mask(), torch.zeros(1, 70, 90)]
    prompts = [PROMPT, "CT of brain, haemorrhage", "ultrasound of breast, benign mass", PROMPT]
    labels = [torch.zeros(1, 70, 90), None, torch.zeros(1, 70, 90), None]
    transform = DiffusionLocalInpaint(**fast)
    alone = [transform.apply(*sample, seed=seed) for seed, sample in enumerate(zip(images, masks, prompts, labels, strict=True))]
    evaluate, calls = LeanUnet.__call__, []
    monkeypatch.setattr(LeanUnet, "__call__", lambda self, z, t, c: (calls.append(len(c)), evaluate(self, z, t, c))[1])
    together = transform.apply_batch(images, masks, prompts, labels, seeds=range(4))
    assert calls == [10, 10]  # 5 slices, twice for guidance, 2 steps
    for one, other in zip(alone, together, strict=True):
        assert one.record == pytest.approx(other.record, abs=1e-2) and one.image.dtype == other.image.dtype
        assert torch.allclose(one.image.double(), other.image.double(), atol=1e-3 if one.image.dtype.is_floating_point else 1)
    assert together[0].label.sum() > 0 and together[1].label is None and together[3].image is images[3]


def test_one_bad_sample_of_a_batch_passes_through_and_the_others_are_edited(fast) -> None:
    bad = torch.full((1, 70, 90), float("nan"))
    edits = DiffusionLocalInpaint(**fast, on_error="passthrough").apply_batch(
        [bad, picture()], [square_mask()] * 2, [PROMPT] * 2, seeds=[1, 2]
    )
    assert [edit.record["applied"] for edit in edits] == [False, True] and edits[0].image is bad


def test_a_batch_with_a_mask_too_few_is_refused(fast) -> None:
    with pytest.raises(ValueError, match="2 images, 1 masks"):
        DiffusionLocalInpaint(**fast).apply_batch([picture()] * 2, [square_mask()], [PROMPT] * 2, seeds=[1, 2])
    with pytest.raises(ValueError, match="0 labels"):
        DiffusionLocalInpaint(**fast).apply_batch([picture()], [square_mask()], [PROMPT], [], seeds=[1])


def test_the_soft_region_holds_every_voxel_that_changes(fast) -> None:
    image, mask = picture(1, (40, 36, 7)), volume_mask()
    transform = DiffusionLocalInpaint(**fast, options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=8.0)))
    changed = transform.apply(image, mask, PROMPT, seed=4).image != image
    region = transform.soft_region(image, mask)
    assert region.shape == image.shape and not bool((changed & (region == 0)).any())
    assert bool((changed & (mask == 0)).any())


@pytest.mark.parametrize("prompt", [None, ["benign mass"], ["ct"], [("mass", 0.5)]])
def test_a_prompt_that_is_none_is_named_and_passes_through(fast, prompt) -> None:
    image = picture()
    with pytest.raises(ValueError, match="a prompt must be one text"):
        DiffusionLocalInpaint(**fast).apply(image, square_mask(), prompt, seed=1)
    edit = DiffusionLocalInpaint(**fast, on_error="passthrough").apply(image, square_mask(), prompt, seed=1)
    assert edit.image is image and "a prompt must be one text" in str(edit.record["reason"])
    assert DiffusionLocalInpaint(**fast, prob=0.0)(image, square_mask(), prompt).image is image


def test_one_text_for_a_whole_batch_is_not_taken_letter_by_letter(fast) -> None:
    with pytest.raises(ValueError, match="one text for each"):
        DiffusionLocalInpaint(**fast).apply_batch([picture()] * 4, [square_mask()] * 4, "mass", seeds=range(4))


def test_a_label_value_that_does_not_fit_is_refused_before_the_work_and_passes_through(fast, monkeypatch) -> None:
    label = np.zeros((1, 70, 90), np.uint16)
    monkeypatch.setattr(Inpainter, "encode", lambda *args: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match="label_value -1 does not fit"):
        DiffusionLocalInpaint(**fast, label_value=-1).apply(picture(), square_mask(), PROMPT, label, seed=1)
    edit = DiffusionLocalInpaint(**fast, label_value=-1, on_error="passthrough").apply(picture(), square_mask(), PROMPT, label, seed=1)
    assert edit.label is label and "does not fit" in str(edit.record["reason"])
