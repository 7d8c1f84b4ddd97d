"""Transplants: geometry, exact background, donors, types, places, labels and the record."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug import (
    Blend,
    DiffusionLocalInpaint,
    DonorBank,
    Donors,
    Geometry,
    Transplant,
    TransplantLesion,
)
from monai_diffaug.errors import GridMismatchError

STILL = Geometry(mirror="none", rotate_deg=0, scale_range=(1, 1), elastic=0)


def picture(seed: int = 0, side: int = 96, channels: int = 1) -> torch.Tensor:
    """Speckle of 60 to 140, uint8."""
    values = torch.rand(channels, side, side, generator=torch.Generator().manual_seed(seed)) * 80 + 60
    return values.to(torch.uint8)


def with_lesion(seed: int, group: str, value: int = 1, channels: int = 1, **words: str) -> dict[str, object]:
    """A dark lesion of 14 x 20 pixels."""
    label = torch.zeros(1, 96, 96, dtype=torch.uint8)
    label[:, 40:54, 30:50] = value
    image = torch.where(label > 0, picture(seed, channels=channels) // 4, picture(seed, channels=channels))
    return {"image": image, "label": label, "group": group, **words}


BANK = DonorBank.of(
    [
        with_lesion(1, "a", 1, finding="cyst", modality="ultrasound", anatomy="breast"),
        with_lesion(2, "b", 2, finding="benign mass", modality="ultrasound", anatomy="breast"),
        with_lesion(3, "c", 1, channels=3, finding="polyp", modality="endoscopy", anatomy="colon"),
    ],
    group_key="group",
)


def paste(transplant: Transplant | None = None, bank: DonorBank | str | Path = BANK, **more: object) -> TransplantLesion:
    return TransplantLesion(bank, strength=0, transplant=transplant, **more)


@pytest.mark.parametrize("strength", [0.0, 0.3])
@pytest.mark.parametrize("channels", [1, 3])
def test_voxels_outside_the_soft_mask_are_bit_identical(strength: float, channels: int) -> None:
    image, label = picture(9, channels=channels), torch.zeros(1, 96, 96, dtype=torch.int16)
    move = TransplantLesion(BANK, strength=strength)
    pending = move.denoise(image, label, seed=4)
    result = move.finish(pending)
    assert result.record["applied"] and result.image.dtype == torch.uint8 and result.label.dtype == torch.int16
    soft = move.soft_region(pending)
    outside = (soft == 0).expand_as(image)
    assert 0.3 < float(outside.float().mean()) < 0.98
    assert torch.equal(result.image[outside], image[outside])
    assert (result.image != image).any(0, keepdim=True)[result.mask > 0].float().mean() > 0.9
    assert bool(((result.mask > 0) <= (soft == 1)).all())
    assert torch.equal(result.label, result.mask.to(torch.int16) * (1 if channels == 3 else result.label.max()))


def test_without_strength_no_model_is_loaded() -> None:
    from monai_diffaug.models import registry

    registry.clear()
    result = paste(Transplant(donors=Donors(finding="cyst")))(picture(5))
    assert result.record["model"] == "" and result.record["applied"] and result.label is None and paste().inpaint is None
    assert not registry._table
    TransplantLesion(BANK)(picture(5))
    assert len(registry._table) == 1


def test_a_donor_is_never_of_the_sample_s_own_group_and_never_excluded() -> None:
    for seed in range(12):
        assert paste().apply(picture(9), group="a", seed=seed).record["donor_group"] == "b"
        assert paste(Transplant(donors=Donors(exclude_groups=["b"]))).apply(picture(9), seed=seed).record["donor_group"] == "a"
    nothing = paste(Transplant(donors=Donors(exclude_groups=["b"]))).apply(picture(9), group="a", seed=0)
    assert not nothing.record["applied"] and nothing.record["reason"].startswith("no donor: none of 3") and nothing.record["donor"] == ""
    assert not nothing.mask.any()


def test_without_groups_a_donor_is_never_of_the_same_file() -> None:
    from monai_diffaug.data.donor_bank import SOURCE_KEY

    bank = DonorBank.of([{**with_lesion(i, ""), SOURCE_KEY: f"scans/{i}.png"} for i in range(2)])
    image = MetaTensor(picture(9), meta={"filename_or_obj": "/data/scans/0.png"})
    assert {paste(bank=bank).apply(image, seed=seed).record["donor"] for seed in range(8)} == {"scans/1.png#1"}


def test_the_restriction_to_findings_and_modalities_holds() -> None:
    for options, donor in ((Donors(finding="benign mass"), "1#1"), (Donors(finding=["cyst", "polyp"], modality="ultrasound"), "0#1")):
        assert {paste(Transplant(donors=options)).apply(picture(9), seed=seed).record["donor"] for seed in range(6)} == {donor}
    reason = paste(Transplant(donors=Donors(finding="glioma"))).apply(picture(9), seed=0).record["reason"]
    assert "finding glioma" in reason


def test_the_same_seed_gives_the_same_result_and_others_differ() -> None:
    move = TransplantLesion(BANK, strength=0.3)
    one, again, other = (move.apply(picture(9), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.image, again.image) and torch.equal(one.mask, again.mask) and one.record == again.record
    assert not torch.equal(one.mask, other.mask)
    torch.manual_seed(0)
    np.random.seed(0)
    assert torch.equal(move.apply(picture(9), seed=3).image, one.image)


def test_the_draws_do_not_depend_on_the_data_or_the_coin() -> None:
    states = []
    for prob, image in ((1.0, picture(9)), (0.0, picture(9)), (1.0, torch.zeros(1, 96, 96))):
        move = TransplantLesion(BANK, strength=0, prob=prob).set_random_state(seed=5)
        move(image)
        states.append(int(move.R.randint(2**31)))
    assert len(set(states)) == 1


@pytest.mark.parametrize("kind", ["numpy", "tensor", "meta"])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64, torch.uint8])
def test_type_dtype_and_meta_data_of_the_input_survive(kind: str, dtype: torch.dtype) -> None:
    tensor, affine = picture(9).to(dtype), torch.diag(torch.tensor([0.5, 0.5, 1, 1], dtype=torch.float64))
    image = {"numpy": tensor.numpy(), "tensor": tensor, "meta": MetaTensor(tensor, affine=affine, meta={"patient": "x"})}[kind]
    before = deepcopy(image)
    result = TransplantLesion(BANK, strength=0.2).apply(image, seed=1)
    assert type(result.image) is type(image) and result.image.dtype == image.dtype and type(result.mask) is type(image)
    if kind == "meta":
        assert result.image.meta["patient"] == "x" and torch.equal(result.image.affine, affine)
    assert np.array_equal(np.asarray(before), np.asarray(image)) and result.record["applied"]
    assert not np.array_equal(np.asarray(before), np.asarray(result.image))


def volume(slices: int = 20, spacing: tuple[float, float, float] = (1.0, 1.0, 3.0), dtype: torch.dtype = torch.int16) -> MetaTensor:
    """(1, 64, 64, slices) HU-like values with axial slices last."""
    values = torch.rand(1, 64, 64, slices, generator=torch.Generator().manual_seed(0)) * 60 + 40
    return MetaTensor(values.to(dtype), affine=torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64)))


def donor_volume(spacing: tuple[float, float, float] = (1.0, 1.0, 3.0)) -> DonorBank:
    """A lesion of 16 x 10 voxels in 5 slices, which brighten from one slice to the next."""
    image = volume(20, spacing)
    label = MetaTensor(torch.zeros(1, 64, 64, 20, dtype=torch.uint8), affine=image.affine)
    for i in range(5):
        image[:, 20:36, 30:40, 7 + i] = 100 + 50 * i
        label[:, 20:36, 30:40, 7 + i] = 7
    return DonorBank.of([{"image": image, "label": label, "group": "v"}], group_key="group")


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (0.5, 1.0, 1.5), (2.0, 2.0, 2.0)])
def test_a_lesion_has_its_size_in_mm_in_a_volume_of_any_spacing(spacing: tuple[float, float, float]) -> None:
    image = volume(40, spacing)
    result = paste(Transplant(geometry=STILL), donor_volume()).apply(image, image.long() * 0, seed=2)
    assert result.record["applied"] and result.image.dtype == torch.int16
    sides = [(np.ptp(axis) + 1) * mm for axis, mm in zip(np.nonzero(np.asarray(result.mask[0])), spacing, strict=True)]
    for side, true, mm in zip(sides, (16, 10, 15), spacing, strict=True):
        assert abs(side - true) <= mm + 1e-6
    assert set(np.unique(np.asarray(result.label))) == {0, 7}
    assert result.record["size_mm"] == pytest.approx(max(sides)) and result.record["contrast"] > 50 and result.record["cnr"] > 1


def test_the_slices_of_a_lesion_stay_in_order_whatever_the_orientation_of_the_volume() -> None:
    stored = torch.zeros(4, 4, dtype=torch.float64)
    stored[2, 0], stored[0, 1], stored[1, 2], stored[3, 3] = -3.0, 1.0, 1.0, 1.0  # I, R, A
    image = MetaTensor(torch.rand(1, 20, 64, 64) * 60 + 40, affine=stored)
    result = paste(Transplant(geometry=STILL, blend=Blend(match="none", join="soft")), donor_volume()).apply(image, seed=2)
    mask = np.asarray(result.mask[0]) > 0
    slices = np.flatnonzero(mask.any((1, 2)))
    levels = [float(np.median(np.asarray(result.image[0])[i][mask[i]])) for i in slices]
    assert len(levels) == 5 and levels == sorted(levels, reverse=True)  # stored from top to bottom


def test_a_volume_is_repainted_and_bit_identical_outside() -> None:
    image = volume()
    move = TransplantLesion(donor_volume(), strength=0.3, transplant=Transplant(geometry=STILL))
    pending = move.denoise(image, seed=1)
    result = move.finish(pending)
    outside = move.soft_region(pending) == 0
    assert result.record["applied"] and result.record["n_slices"] == 5
    assert torch.equal(result.image.as_tensor()[outside], image.as_tensor()[outside])
    untouched_slices = ~(np.asarray(result.mask[0]) > 0).any((0, 1))
    assert torch.equal(result.image.as_tensor()[..., untouched_slices], image.as_tensor()[..., untouched_slices])


def test_a_picture_takes_a_slice_of_a_volume_and_a_volume_takes_no_picture() -> None:
    plane = MetaTensor(picture(9).short(), affine=torch.eye(4, dtype=torch.float64))
    result = paste(Transplant(geometry=STILL), donor_volume()).apply(plane, seed=0)
    assert result.record["applied"] and abs(int((result.mask > 0).sum()) - 160) <= 10
    assert paste().apply(volume(), seed=0).record["reason"].startswith("no donor: none of 3 is from other groups' volumes")


def test_size_mm_replaces_the_donor_s_own_size() -> None:
    sizes = []
    for seed in range(12):
        result = paste(Transplant(geometry=Geometry(mirror="none", rotate_deg=0, elastic=0, size_mm=(8, 30)))).apply(picture(9), seed=seed)
        rows, columns = np.nonzero(np.asarray(result.mask[0]))
        sizes.append(max(np.ptp(rows), np.ptp(columns)) + 1)
    assert 7 <= min(sizes) < 14 and 24 < max(sizes) <= 31


def test_a_lesion_lies_in_the_region_and_clear_of_labels_except_the_background() -> None:
    region, label = torch.zeros(1, 96, 96), torch.zeros(1, 96, 96, dtype=torch.uint8)
    region[:, :, 40:] = 1
    label[:, :, 70:] = 5
    for seed in range(6):
        result = paste().apply(picture(9), label, region, seed=seed)
        assert result.record["applied"] and not result.mask[..., :40].any() and not result.mask[..., 70:].any()
        assert bool((result.label[..., 70:] == 5).all()) and torch.equal(result.image[..., 70:], picture(9)[..., 70:])
    organ = torch.full_like(label, 5)
    assert paste().apply(picture(9), organ, seed=0).record["reason"] == "no free place for a donor was found"
    inside = paste(Transplant(background=[5])).apply(picture(9), organ, seed=0)
    assert inside.record["applied"] and set(inside.label.unique().tolist()) == {5, int(inside.label.min())}


def test_dark_speckles_of_a_region_are_no_obstacle() -> None:
    region = torch.rand(1, 96, 96, generator=torch.Generator().manual_seed(0)) > 0.1
    region[:, :, :40] = False
    for seed in range(4):
        result = paste().apply(picture(9), None, region, seed=seed)
        assert result.record["applied"] and not result.mask[..., :40].any()


def test_a_lesion_does_not_lie_on_the_black_frame() -> None:
    image = picture(9, side=128)
    image[:, :30] = image[:, -30:] = 0
    for seed in range(8):
        result = paste().apply(image, seed=seed)
        assert result.record["applied"] and not result.mask[:, :29].any() and not result.mask[:, -29:].any()
        assert torch.equal(result.image[:, :26], image[:, :26])


def test_a_likelihood_chooses_the_place() -> None:
    likelihood = torch.zeros(1, 96, 96)
    likelihood[:, 60, 30] = 1
    rows, columns = np.nonzero(np.asarray(paste().apply(picture(9), None, None, likelihood, seed=0).mask[0]))
    assert abs(rows.mean() - 60) < 3 and abs(columns.mean() - 30) < 3
    with pytest.raises(ValueError, match="finite and >= 0"):
        paste().apply(picture(9), None, None, -likelihood, seed=0)


def test_nothing_is_placed_where_there_is_no_room_and_the_record_says_so() -> None:
    small = picture(9)[:, :12, :12]
    result = TransplantLesion(BANK).apply(small, torch.zeros(1, 12, 12), seed=0)
    assert result.image is small and not result.mask.any() and not result.record["applied"]
    assert result.record["reason"] == "no free place for a donor was found" and result.record["donor"] == ""


def test_the_blending_removes_the_seam_and_keeps_the_lesion() -> None:
    from monai_diffaug.studies.seam import seam

    bright = (picture(9).float() * 1.6).clamp(max=255).to(torch.uint8)
    figures = {}
    for name, blend in (("raw", Blend(match="none", join="soft")), ("default", Blend())):
        result = paste(Transplant(geometry=STILL, blend=blend, donors=Donors(finding="cyst"))).apply(bright, seed=3)
        from scipy.ndimage import binary_dilation

        border = binary_dilation(np.asarray(result.mask[0]) > 0, iterations=2)  # the margin's border
        figures[name] = (seam(bright.numpy(), result.image.numpy(), border).to_original, result.image[result.mask > 0].float().mean())
    assert figures["default"][0] < 1.3 and figures["default"][1] < 0.5 * bright.float().mean()


def test_detail_is_kept_unless_it_is_switched_off() -> None:
    def texture(keep: bool) -> float:
        move = TransplantLesion(BANK, strength=0.2, transplant=Transplant(geometry=STILL, blend=Blend(keep_detail=keep)))
        pending = move.denoise(picture(9), seed=3)
        result, pasted = move.finish(pending), torch.as_tensor(pending.image_pasted)
        inside = result.mask > 0
        return float(np.corrcoef(result.image[inside].numpy(), pasted[inside].numpy())[0, 1])

    assert texture(True) > texture(False) + 0.02


def test_label_value_and_prompt_come_from_the_donor_unless_they_are_given() -> None:
    label = torch.zeros(1, 96, 96, dtype=torch.uint8)
    mass = Transplant(donors=Donors(finding="benign mass"))
    result = paste(mass).apply(picture(9), label, seed=0)
    assert int(result.label.max()) == 2 and result.record["prompt"] == "ultrasound of breast, benign mass"
    result = paste(mass, label_value=9).apply(picture(9), label, prompt="CT of liver, cyst", seed=0)
    assert int(result.label.max()) == 9 and result.record["prompt"] == "CT of liver, cyst"
    with pytest.raises(ValueError, match="does not fit"):
        paste(mass, label_value=300).apply(picture(9), label, seed=0)
    left = paste(mass, label_value=300, on_error="passthrough").apply(picture(9), label, seed=0)
    assert left.label is label and left.record["reason"].startswith("ValueError: label_value 300")


def test_a_ready_inpainting_transform_gives_its_settings() -> None:
    paint = DiffusionLocalInpaint(num_inference_steps=3, guidance_scale=1.0, window=(0, 200), plane="coronal", strength=0.9)
    move = TransplantLesion(BANK, model=paint, strength=0.4)
    assert move.inpaint.settings.strength == 0.4 and move.inpaint.settings.num_inference_steps == 3 and move.plane == "coronal"
    assert paint.settings.strength == 0.9


def test_the_instance_is_small_and_survives_a_pickle(tmp_path: Path) -> None:
    move = TransplantLesion(BANK.save(tmp_path / "bank.npz"), strength=0.3)
    assert len(pickle.dumps(move)) < 20_000
    before = move.apply(picture(9), seed=1).image
    assert len(pickle.dumps(move)) < 20_000
    assert torch.equal(pickle.loads(pickle.dumps(move)).apply(picture(9), seed=1).image, before)
    assert torch.equal(TransplantLesion(BANK, strength=0.3).apply(picture(9), seed=1).image, before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strength": 1.2}, ValueError, "strength must be in"),
        ({"plane": "oblique"}, ValueError, "plane must be one of"),
        ({"on_error": "ignore"}, ValueError, "on_error must be one of"),
        ({"transplant": {"background": [1]}}, TypeError, "transplant must be Transplant"),
        ({"bank": "none.npz"}, FileNotFoundError, "lesion-bank"),
        ({"strenght": 0.3}, TypeError, "did you mean strength"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TransplantLesion(**{"bank": BANK, **options})


def test_another_grid_and_non_finite_voxels_are_refused() -> None:
    with pytest.raises(GridMismatchError, match="label"):
        paste().apply(picture(9), torch.zeros(1, 50, 50), seed=0)
    with pytest.raises(GridMismatchError, match="region"):
        paste().apply(picture(9), None, torch.zeros(1, 50, 50), seed=0)
    with pytest.raises(ValueError, match="non-finite"):
        paste().apply(picture(9).float() * float("nan"), seed=0)
