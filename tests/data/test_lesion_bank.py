"""The lesion bank, with lesions of different random textures."""

from __future__ import annotations

import json
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from monai.data import Dataset, MetaTensor

from monai_diffaug import LesionBank
from monai_diffaug.errors import GridMismatchError

SIDE = 80


def texture(seed: int, side: int = SIDE) -> torch.Tensor:
    """(1, side, side) float32 in about 0 to 255, smooth over four pixels."""
    coarse = torch.rand(1, 1, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")[0] * 255


def disc(radius: int = 16, centre: tuple[int, int] = (40, 40), side: int = SIDE) -> torch.Tensor:
    ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return ((ys - centre[0]) ** 2 + (xs - centre[1]) ** 2 <= radius**2)[None].to(torch.uint8)


def samples(count: int = 8) -> list[dict[str, torch.Tensor]]:
    return [{"image": texture(i), "label": disc(16, (36 + i % 5, 40))} for i in range(count)]


def pasted(index: int) -> torch.Tensor:
    """A lesion of the bank in other surroundings."""
    sample = samples()[index]
    return torch.where(sample["label"] > 0, sample["image"], texture(99))


BANK = LesionBank.of(samples())


def test_a_lesion_pasted_into_other_surroundings_is_detected_with_its_image():
    for index in (2, 5):
        nearest = BANK.nearest(pasted(index), samples()[index]["label"])
        assert nearest.image == index and nearest.similarity > 0.97
    assert BANK.nearest(texture(99), samples()[2]["label"]).similarity < 0.8


def test_mirrored_rotated_brighter_shifted_and_resized_copies_are_detected():
    image, mask = pasted(3), samples()[3]["label"]
    larger = [torch.nn.functional.interpolate(each[None].float(), scale_factor=1.6)[0] for each in (image, mask)]
    for name, (one, other) in {
        "mirrored": (image.flip(-1), mask.flip(-1)),
        "rotated": (image.rot90(1, (-2, -1)).flip(-1), mask.rot90(1, (-2, -1)).flip(-1)),
        "brighter": (image * 3 + 200, mask),
        "shifted": (image.roll((7, -9), (1, 2)), mask.roll((7, -9), (1, 2))),
        "shifted mask": (samples()[3]["image"], mask.roll((2, -2), (1, 2))),
        "larger": larger,
        "mask wider": (samples()[3]["image"], disc(17, (39, 40))),
    }.items():
        nearest = BANK.nearest(one, other)
        assert nearest.image == 3 and nearest.similarity > 0.9, name


def test_the_yardstick_is_the_similarity_of_lesions_of_different_groups():
    assert len(BANK.yardstick) == 8 and float(BANK.yardstick.max()) < 0.8
    doubled = [{**sample, "patient": i % 8} for i, sample in enumerate(samples() + samples())]
    assert float(LesionBank.of(doubled).yardstick.min()) > 0.99
    grouped = LesionBank.of(doubled, group_key="patient")
    assert len(grouped) == 16 and np.allclose(np.sort(grouped.yardstick), np.repeat(np.sort(BANK.yardstick), 2), atol=1e-3)


def test_the_coarse_search_does_not_miss_copies():
    many = LesionBank.of([{"image": texture(i), "label": disc()} for i in range(120)])
    assert [many.nearest(texture(i), disc().roll((2, -2), (1, 2))).image for i in range(0, 120, 24)] == list(range(0, 120, 24))


def volume(first: int) -> dict[str, object]:
    """A lesion of three axial slices, stored with the slices first."""
    image, label = torch.zeros(1, 5, SIDE, SIDE), torch.zeros(1, 5, SIDE, SIDE)
    for z in range(1, 4):
        image[:, z], label[:, z] = texture(first + z), disc() * 2
    affine = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    return {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)}


def test_volumes_are_compared_slice_by_slice_in_the_plane_of_their_affine():
    bank = LesionBank.of([volume(0), volume(10), volume(20)], label_value=2)
    assert len(bank) == 3 and len(bank.patterns) == 9
    copied = volume(30)
    copied["image"][:, 2] = texture(12)
    assert bank.nearest(copied["image"], copied["label"])[1] == 1 and bank.nearest(copied["image"], copied["label"])[0] > 0.97
    assert bank.nearest(volume(30)["image"], volume(30)["label"]).similarity < 0.8
    with pytest.raises(ValueError, match="voxels of value 1"):
        LesionBank.of([volume(0)], label_value=1)


def test_a_bank_has_at_most_eight_slices_per_volume_and_each_component_of_a_mask():
    deep = [{"image": texture(i)[..., None].expand(-1, -1, -1, 30), "label": disc()[..., None].expand(-1, -1, -1, 30)} for i in range(2)]
    assert len(LesionBank.of(deep).patterns) == 16
    two = disc(8, (20, 20)) | disc(8, (60, 60)) | disc(1, (5, 70))
    assert len(LesionBank.of([{"image": texture(i), "label": two} for i in range(2)]).patterns) == 4


def test_a_lesion_of_few_pixels_or_without_texture_is_not_a_copy():
    assert BANK.nearest(texture(1), disc(2)) == (-1.0, -1)
    assert BANK.nearest(texture(1), torch.zeros(1, SIDE, SIDE)) == (-1.0, -1)
    assert abs(BANK.nearest(torch.full((1, SIDE, SIDE), 7.0), disc()).similarity) < 0.1


def test_intensities_beyond_the_window_do_not_hide_a_copy():
    bright = [{**sample, "image": torch.where(torch.rand(1, SIDE, SIDE) > 0.97, 3000.0, sample["image"])} for sample in samples()]
    clipped = bright[4]["image"].clamp(0, 255)
    mask = samples()[4]["label"]
    assert LesionBank.of(bright, window=(0, 255)).nearest(clipped, mask).similarity > 0.99
    assert LesionBank.of(bright).nearest(clipped, mask).similarity < 0.7


def test_a_saved_bank_is_loaded_unchanged(tmp_path):
    bank = LesionBank.of(samples(), window=(0, 255), plane="coronal")
    stored = LesionBank.load(bank.save(tmp_path / "new" / "bank.npz"))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["bank.npz"]
    assert (stored.window, stored.plane, stored.channels) == ((0.0, 255.0), "coronal", 1)
    assert np.array_equal(stored.patterns, bank.patterns) and np.array_equal(stored.yardstick, bank.yardstick)
    assert stored.nearest(pasted(2), samples()[2]["label"]) == bank.nearest(pasted(2), samples()[2]["label"])
    assert stored.patterns.nbytes == 8 * 2048


def test_the_error_of_a_file_that_is_no_bank_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"LesionBank\.of"):
        LesionBank.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", a=1)
    for name in ("text", "other"):
        with pytest.raises(ValueError, match="is no lesion bank"):
            LesionBank.load(tmp_path / f"{name}.npz")


def test_a_copy_is_the_same_bank_and_a_pickle_contains_it():
    assert deepcopy(BANK) is BANK
    copied = pickle.loads(pickle.dumps(BANK))
    assert copied.nearest(pasted(2), samples()[2]["label"]) == BANK.nearest(pasted(2), samples()[2]["label"])


def test_a_monai_dataset_and_a_datalist_give_the_same_bank(tmp_path):
    from PIL import Image

    entries = []
    for i, sample in enumerate(samples(3)):
        for name in ("image", "label"):
            Image.fromarray(sample[name][0].byte().numpy() * (100 if name == "label" else 1)).save(tmp_path / f"{name}{i}.png")
        entries.append({"image": f"image{i}.png", "label": f"label{i}.png", "patient": str(i)})
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(tmp_path / "normal.png")
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "normal.png"}, *entries]}))
    bank = LesionBank.from_datalist(tmp_path / "list.json", group_key="patient")
    assert bank.owners.tolist() == [1, 2, 3]
    assert bank.nearest(samples()[1]["image"].byte(), samples()[1]["label"]) == (pytest.approx(1, abs=0.01), 2)  # read transposed
    same = LesionBank.of(Dataset([{**sample, "image": sample["image"].byte()} for sample in samples(3)]))
    assert np.allclose(np.sort(same.yardstick), np.sort(bank.yardstick), atol=1e-2)
    with pytest.raises(FileNotFoundError, match="no such file"):
        LesionBank.from_datalist(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        ([], "none of 0 samples"),
        ([{"image": texture(0)}, {"image": texture(0), "label": disc() * 0}], "none of 2 samples.*check label_key"),
        ([{"image": texture(0), "label": disc(2)}], "25 connected pixels"),
        ([{"image": texture(0), "label": disc()}], "one group"),
        ([{"image": texture(0), "label": disc()}, {"image": texture(1).expand(3, -1, -1), "label": disc()}], "1 channel and some 3"),
        ([{"image": texture(0).expand(2, -1, -1), "label": disc()}], "C 1 or 3"),
        ([{"image": texture(0) * float("nan"), "label": disc()}], "non-finite"),
    ],
)
def test_samples_without_a_bank_are_refused_with_the_reason(invalid, message):
    with pytest.raises(ValueError, match=message):
        LesionBank.of(invalid)


def test_an_image_with_other_channels_or_grid_is_refused():
    with pytest.raises(ValueError, match=r"1 channel\(s\), this one has 3"):
        BANK.nearest(texture(0).expand(3, -1, -1), disc())
    with pytest.raises(GridMismatchError, match="mask"):
        BANK.nearest(texture(0), disc(side=60))
    with pytest.raises(ValueError, match="non-finite"):
        BANK.nearest(texture(0) * float("nan"), disc())


def test_a_real_lesion_is_detected_in_another_image_and_new_ones_are_not(real_data):
    pack = dict(np.load(real_data / "breast_ultrasound.npz"))
    has_lesion = (pack["labels"] > 0).sum((1, 2)) > 400
    first = [np.flatnonzero((pack["groups"] == group) & has_lesion)[0] for group in np.unique(pack["groups"][has_lesion])[:80]]
    images = [torch.from_numpy(pack["images"][i][None].astype(np.float32)) for i in first]
    masks = [torch.from_numpy((pack["labels"][i][None] > 0).astype(np.uint8)) for i in first]
    bank = LesionBank.of([{"image": image, "label": mask} for image, mask in zip(images[:60], masks[:60], strict=True)])
    limit = np.quantile(bank.yardstick, 0.95)
    for index in (0, 10, 20):
        pasted_lesion = torch.where(masks[index] > 0, images[index], images[index + 1])
        for image, mask in (
            (pasted_lesion, masks[index]),
            (pasted_lesion.flip(-1), masks[index].flip(-1)),
            (pasted_lesion * 0.6 + 30, masks[index]),
        ):
            nearest = bank.nearest(image, mask)
            assert nearest.image == index and nearest.similarity > limit
    new = [bank.nearest(image, mask).similarity >= limit for image, mask in zip(images[60:], masks[60:], strict=True)]
    assert np.mean(new) <= 0.2


def test_a_bank_that_cannot_be_written_leaves_no_part_file(tmp_path):
    (tmp_path / "bank.npz").mkdir()
    with pytest.raises(OSError, match="bank.npz"):
        BANK.save(tmp_path / "bank.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["bank.npz"]


def test_a_label_of_minus_one_is_no_lesion():
    ignored = [{**sample, "label": sample["label"].to(torch.int16)} for sample in samples(3)]
    for sample in ignored:
        sample["label"][:, :12, :12] = -1
    assert len(LesionBank.of(ignored).patterns) == len(LesionBank.of(samples(3)).patterns)
