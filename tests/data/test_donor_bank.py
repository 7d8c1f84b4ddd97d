"""The bank of lesions with their pixels."""

from __future__ import annotations

import json
import pickle
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug import DonorBank, LesionBank
from monai_diffaug.data.donor import LESION, OTHER
from monai_diffaug.errors import GridMismatchError

SIDE = 60


def picture(seed: int, channels: int = 1) -> torch.Tensor:
    return torch.randint(20, 200, (channels, SIDE, SIDE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def square(value: int = 1, top: int = 20, left: int = 24, side: int = 12) -> torch.Tensor:
    label = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    label[:, top : top + side, left : left + side] = value
    return label


def sample(seed: int = 0, **more: object) -> dict[str, object]:
    return {"image": picture(seed), "label": square(), "patient": f"p{seed}", **more}


def same(one: DonorBank, other: DonorBank) -> bool:
    fields = ("spacing_mm", "is_volume", "surround", "window", "origin")
    return len(one) == len(other) and all(
        np.array_equal(a.pixels, b.pixels)
        and a.pixels.dtype == b.pixels.dtype
        and np.array_equal(a.mask, b.mask)
        and all(getattr(a, name) == getattr(b, name) for name in fields)
        for a, b in zip(one.donors, other.donors, strict=True)
    )


def test_a_donor_is_the_crop_of_its_image_with_half_its_size_around_it() -> None:
    image = picture(0)
    (donor,) = DonorBank.of([{"image": image, "label": square()}]).donors
    assert np.array_equal(donor.pixels[0], image[:, 12:40, 16:44].numpy())  # 12 pixels, 8 around
    assert (donor.mask[0, 8:20, 8:20] == LESION).all() and int((donor.mask == LESION).sum()) == 144
    assert donor.spacing_mm == (1, 1, 1) and not donor.is_volume and donor.window == (0, 255)
    around = image[0].float()[14:38, 18:42]
    assert abs(donor.surround[0][0] - float(around.mean())) < 10


def test_each_connected_part_of_each_class_is_a_donor_and_knows_its_neighbours() -> None:
    label = square(1, 10, 10) | square(2, 10, 26) | square(1, 40, 40, side=4)  # the last one is too small
    bank = DonorBank.of([{"image": picture(0), "label": label, "finding": {"1": "cyst", "1,2": "mass"}, "modality": "CT"}])
    assert [(d.origin.name, d.origin.label_value, d.origin.finding, d.origin.modality) for d in bank.donors] == [
        ("0#1", 1, "cyst", "CT"),
        ("0#2", 2, "mass", "CT"),
    ]
    assert (bank.donors[0].mask[0, :, -1] == OTHER).any()
    assert len(DonorBank.of([{"image": picture(0), "label": label}], label_value=2)) == 1


def test_the_black_frame_is_not_pasted_with_a_lesion() -> None:
    image = picture(0)
    image[:, :, :20] = 0
    (donor,) = DonorBank.of([{"image": image, "label": square()}]).donors
    assert (donor.mask[0, :, 0] == OTHER).all() and (donor.mask[0, :, -1] == 0).all()


def volume(dtype: torch.dtype = torch.int16) -> dict[str, object]:
    """A lesion of four axial slices, stored S, R, A with slices of 5 mm and pixels of 2 x 3 mm."""
    affine = torch.zeros(4, 4, dtype=torch.float64)
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 5.0, 2.0, 3.0, 1.0
    image = torch.randint(-1000, 1000, (1, 9, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).to(dtype)
    label = torch.zeros(1, 9, SIDE, SIDE, dtype=torch.uint8)
    for i in range(4):
        label[:, 3 + i, 20 : 30 + i, 24:36] = 3
        image[:, 3 + i, 20 : 30 + i, 24:36] = 100 * i
    return {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine), "patient": "a"}


def test_slices_of_a_volume_are_in_order_with_their_spacing() -> None:
    (donor,) = DonorBank.of([volume()], group_key="patient").donors
    assert donor.spacing_mm == (5.0, 3.0, 2.0) and donor.is_volume and donor.pixels.dtype == np.int16
    inside = [np.unique(each[0][mask == LESION]).tolist() for each, mask in zip(donor.pixels, donor.mask, strict=True)]
    assert inside == [[0], [100], [200], [300]]
    assert donor.origin.label_value == 3 and donor.origin.group == "a"


def test_a_saved_bank_is_loaded_unchanged_and_holds_the_patterns_too(tmp_path: Path) -> None:
    bank = DonorBank.of([sample(0, finding="cyst"), sample(1), volume()], group_key="patient", plane="axial")
    samples = [sample(seed) for seed in range(2)]
    file = bank.save(tmp_path / "new" / "bank.npz", patterns=LesionBank.of(samples))
    assert same(DonorBank.load(file), bank) and len(LesionBank.load(file)) == 2
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["bank.npz"]
    assert DonorBank.load(bank.save(file)).plane == "axial"  # replaces it
    assert deepcopy(bank) is bank and same(pickle.loads(pickle.dumps(bank)), bank)


def test_whole_numbers_that_were_loaded_as_float_take_one_byte() -> None:
    (donor,) = DonorBank.of([{"image": picture(0).float(), "label": square().float()}]).donors
    assert donor.pixels.dtype == np.uint8
    (donor,) = DonorBank.of([{"image": picture(0) / 255, "label": square()}]).donors
    assert donor.pixels.dtype == np.float32


def test_every_damaged_or_foreign_file_is_one_clear_error(tmp_path: Path) -> None:
    file = DonorBank.of([sample(0)]).save(tmp_path / "bank.npz")
    whole = file.read_bytes()
    for count in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:count])
        with pytest.raises(ValueError, match=r"is no donor bank .*lesion-bank"):
            DonorBank.load(file)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 255
    file.write_bytes(changed)
    with pytest.raises(ValueError, match="is no donor bank"):
        DonorBank.load(file)
    LesionBank.of([sample(0), sample(1)]).save(tmp_path / "patterns.npz")
    with pytest.raises(ValueError, match="patterns of a LesionBank and no pixels"):
        DonorBank.load(tmp_path / "patterns.npz")
    np.savez(tmp_path / "pickled.npz", donor_table=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="is no donor bank"):
        DonorBank.load(tmp_path / "pickled.npz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        DonorBank.load(tmp_path / "none.npz")


def test_a_table_that_does_not_fit_the_pixels_is_refused(tmp_path: Path) -> None:
    file = DonorBank.of([sample(0)]).save(tmp_path / "bank.npz")
    arrays = dict(np.load(file))
    np.savez(file, **{**arrays, "donor_pixels": arrays["donor_pixels"][:-5]})
    with pytest.raises(ValueError, match="is no donor bank"):
        DonorBank.load(file)
    table = json.loads(arrays["donor_table"].tobytes())
    table["donors"][0]["dtype"] = "|O"
    np.savez(file, **{**arrays, "donor_table": np.frombuffer(json.dumps(table).encode(), np.uint8)})
    with pytest.raises(ValueError, match="is no donor bank"):
        DonorBank.load(file)


def test_a_file_that_is_no_bank_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"no bank")
    with pytest.raises(ValueError, match="is no lesion bank; it is not replaced"):
        DonorBank.of([sample(0)]).save(tmp_path / "image.png")
    assert (tmp_path / "image.png").read_bytes() == b"no bank"


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    from PIL import Image

    rows: dict[str, list[dict[str, object]]] = {"training": [], "validation": []}
    for i, section in enumerate(["training", "training", "training", "validation"]):
        label = np.zeros((SIDE, SIDE + 10), np.uint8)
        label[20:30, 20:40] = 1
        Image.fromarray(np.full((SIDE, SIDE + 10), 40 + i, np.uint8)).save(tmp_path / f"i{i}.png")
        Image.fromarray(label).save(tmp_path / f"l{i}.png")
        patient = "b" if i in (1, 3) else f"{i}"
        rows[section].append({"image": f"i{i}.png", "label": f"l{i}.png", "patient": patient, "finding": "cyst"})
    rows["training"].append({"image": "i0.png", "label": None, "patient": "n"})  # type: ignore[dict-item]
    (tmp_path / "list.json").write_text(json.dumps({"modality": "CT", **rows}))
    return tmp_path / "list.json"


def test_a_datalist_gives_donors_without_the_groups_of_the_validation_list(datalist: Path, caplog: pytest.LogCaptureFixture) -> None:
    bank = DonorBank.from_datalist(datalist, group_key="patient")
    assert [(d.origin.source, d.origin.group, d.origin.finding, d.origin.modality) for d in bank.donors] == [
        ("i0.png", "0", "cyst", "CT"),
        ("i2.png", "2", "cyst", "CT"),
    ]
    assert "left out 1 entries" in caplog.text
    assert len(DonorBank.from_datalist(datalist)) == 3
    assert [d.origin.group for d in DonorBank.from_datalist(datalist).donors] == ["i0.png", "i1.png", "i2.png"]


def test_pictures_are_read_as_load_imaged_does_or_upright(datalist: Path) -> None:
    for upright, shape in ((False, (20, 10)), (True, (10, 20))):
        donor = DonorBank.from_datalist(datalist, upright=upright).donors[0]
        rows, columns = np.nonzero(donor.mask[0] == LESION)
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == shape


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], ValueError, "none of 0 samples"),
        ([{"image": picture(0), "label": square(side=4)}], ValueError, "25 connected voxels"),
        ([{"label": square()}], KeyError, "sample 0 has no 'image'"),
        ([{"image": picture(0), "label": square()[:, :40]}], GridMismatchError, "sample 0: label"),
        ([{"image": picture(0).float() * float("nan"), "label": square()}], ValueError, "non-finite"),
    ],
)
def test_samples_without_donors_are_refused_with_the_reason(samples, error, message) -> None:
    with pytest.raises(error, match=message):
        DonorBank.of(samples)


def test_a_missing_group_is_named() -> None:
    with pytest.raises(KeyError, match="no 'patient'"):
        DonorBank.of([{"image": picture(0), "label": square()}], group_key="patient")
