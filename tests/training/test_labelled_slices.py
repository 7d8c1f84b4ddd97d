from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.geometry.window import window_of
from monai_diffaug.training.datalist import ANY_VALUE, Entry, read_datalist
from monai_diffaug.training.labelled_slices import MAX_SLICES, load_slices
from monai_diffaug.training.run_settings import TrainingInputError


def volume_entry(folder, affine=None, label_shape=None, value=2, findings=None):
    rng = np.random.RandomState(0)
    image = rng.normal(0, 50, (40, 36, 44)).astype(np.int16)
    label = np.zeros(label_shape or image.shape, np.uint8)
    label[10:20, 12:30, 3:43] = value
    affine = np.diag([1.0, 1, 2, 1]) if affine is None else affine
    nib.save(nib.Nifti1Image(image, affine), folder / "image.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), folder / "label.nii.gz")
    return Entry(folder / "image.nii.gz", folder / "label.nii.gz", findings or {ANY_VALUE: "spleen"}, "ct", "abdomen")


def test_pictures_stay_upright_and_uint8_keeps_its_full_range(tmp_path):
    image = np.zeros((20, 30), np.uint8)
    image[:5], image[0, 0] = 255, 128
    label = np.zeros((20, 30), np.uint8)
    label[:5] = 1
    Image.fromarray(image).save(tmp_path / "i.png")
    Image.fromarray(label).save(tmp_path / "l.png")
    (chosen,) = load_slices([Entry(tmp_path / "i.png", tmp_path / "l.png", {ANY_VALUE: "mass"}, "ct", "brain")])
    assert chosen.image.shape == (1, 20, 30) and chosen.lesion.shape == (20, 30)
    assert chosen.image[0, 1, 1] == 1 and chosen.image[0, 10, 1] == -1
    assert chosen.lesion[:5].all() and not chosen.lesion[5:].any()


def test_a_volume_gives_the_slices_that_the_label_touches_in_the_anatomical_plane(tmp_path):
    entry = volume_entry(tmp_path)
    axial = load_slices([entry], window=(-100, 100))
    assert len(axial) == MAX_SLICES and axial[0].image.shape == (1, 36, 40)
    assert float(axial[0].image.min()) == -1 and axial[0].lesion.sum() == 180
    sagittal = load_slices([entry], plane="sagittal")
    assert len(sagittal) == 10 and sagittal[0].lesion.sum() == 18 * 40


def test_each_label_value_and_each_part_is_a_lesion_of_its_own(tmp_path):
    label = np.zeros((40, 40), np.uint8)
    label[2:10, 2:10], label[20:30, 2:12], label[20:30, 25:35] = 1, 1, 2
    label[38, 38] = 2  # a speck
    Image.fromarray(np.full((40, 40), 99, np.uint8)).save(tmp_path / "i.png")
    Image.fromarray(label).save(tmp_path / "l.png")
    slices = load_slices([Entry(tmp_path / "i.png", tmp_path / "l.png", {(1,): "cyst", (2,): "mass"}, "ct", "brain")])
    assert sorted((s.finding, int(s.lesion.sum())) for s in slices) == [("cyst", 64), ("cyst", 100), ("mass", 100)]
    assert all(s.labelled.sum() == 265 for s in slices)


def test_normal_images_have_no_lesion(datalist):
    slices = load_slices(read_datalist(datalist))
    assert [s.is_normal for s in slices] == [False, False, False, True]
    assert not slices[-1].lesion.any() and slices[-1].finding == "normal tissue"


def test_a_dicom_series_is_read(real_data):
    folder = real_data / "volumes" / "ct_dicom_series"
    (first, *_) = load_slices([Entry(folder, None, {}, "ct", "abdomen")])
    assert first.image.shape[0] == 1 and torch.isfinite(first.image).all() and first.image.std() > 0.1


def test_an_image_without_lesion_is_refused_and_named(tmp_path):
    entry = volume_entry(tmp_path, findings={(7,): "spleen"})
    with pytest.raises(TrainingInputError, match=r"label.nii.gz shows no lesion .*value 7; it holds 0, 2"):
        load_slices([entry])


def test_where_all_lesions_are_specks_the_slice_is_normal_tissue_around_them(tmp_path, caplog):
    speck = np.zeros((30, 40), np.uint8)
    speck[4:7, 20:23] = 1
    entry = replace(write_pair(tmp_path, disc_picture(), Image.fromarray(speck)), prompt="a tiny cyst")
    (chosen,) = load_slices([entry])
    assert chosen.is_normal and not chosen.has_lesion and np.array_equal(chosen.labelled, speck > 0)
    assert chosen.prompt == "", "the prompt describes the lesion"
    assert "l.png: its lesions have less than 12 pixels" in caplog.text


def test_another_shape_or_affine_is_refused(tmp_path):
    entry = volume_entry(tmp_path, label_shape=(40, 36, 45))
    with pytest.raises(GridMismatchError, match="not on the grid"):
        load_slices([entry])
    entry = volume_entry(tmp_path)
    label = nib.load(entry.label)
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), np.diag([1.0, 1, 3, 1])), entry.label)
    with pytest.raises(GridMismatchError, match="affine puts voxels up to 43 mm away.*image.nii.gz"):
        load_slices([entry])


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "i.png").write_text("no picture")
    with pytest.raises(TrainingInputError, match=r"image .*i.png: corrupt or truncated image"):
        load_slices([Entry(tmp_path / "i.png", None, {}, "ct", "brain")])


def write_pair(folder, image, label):
    image.save(folder / "i.png")
    label.save(folder / "l.png")
    return Entry(folder / "i.png", folder / "l.png", {ANY_VALUE: "mass"}, "ct", "brain")


def disc_picture(mode="L"):
    disc = np.zeros((30, 40), np.uint8)
    disc[4:14, 20:34] = 255
    return Image.fromarray(disc).convert(mode)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "1"])
def test_the_transparency_of_a_label_is_no_class(tmp_path, mode):
    (chosen,) = load_slices([write_pair(tmp_path, disc_picture(), disc_picture(mode))])
    assert chosen.lesion.sum() == 140


def test_a_palette_is_seen_in_its_colours_and_read_as_class_ids(tmp_path):
    picture = Image.fromarray(np.where(np.asarray(disc_picture()) > 0, 1, 0).astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, 255, 0, 0])
    (chosen,) = load_slices([write_pair(tmp_path, picture, picture)])
    assert chosen.image[:, 5, 25].tolist() == [1, -1, -1] and chosen.lesion.sum() == 140


@pytest.mark.parametrize("suffix", ["tif", "tiff", "bmp"])
def test_other_pictures_are_upright_too(tmp_path, suffix):
    disc_picture().save(tmp_path / f"i.{suffix}")
    disc_picture().save(tmp_path / "l.png")
    (chosen,) = load_slices([Entry(tmp_path / f"i.{suffix}", tmp_path / "l.png", {ANY_VALUE: "mass"}, "ct", "brain")])
    assert chosen.image.shape == (1, 30, 40) and bool((chosen.image[0, chosen.lesion] == 1).all())


@pytest.mark.parametrize("channels", [2, 4])
def test_the_channels_of_a_volume_are_no_transparency(tmp_path, channels):
    entry = volume_entry(tmp_path)
    volume = np.asarray(nib.load(entry.image).dataobj)
    nib.save(nib.Nifti1Image(np.stack([volume] * channels, -1), np.diag([1.0, 1, 2, 1])), entry.image)
    with pytest.raises(TrainingInputError, match=rf"image.nii.gz: a 4-D image of shape \(40, 36, 44, {channels}\)"):
        load_slices([entry])


def test_a_label_that_is_not_finite_is_refused(tmp_path):
    entry = volume_entry(tmp_path)
    label = np.asarray(nib.load(entry.label).dataobj).astype(np.float32)
    label[0] = np.nan
    nib.save(nib.Nifti1Image(label, np.diag([1.0, 1, 2, 1])), entry.label)
    with pytest.raises(TrainingInputError, match=r"label .*label.nii.gz: 1584 voxels are not finite"):
        load_slices([entry])


def test_one_channel_a_class_is_refused_as_a_label(tmp_path):
    entry = volume_entry(tmp_path)
    label = np.asarray(nib.load(entry.label).dataobj)
    nib.save(nib.Nifti1Image(np.stack([label == 0, label == 2], -1).astype(np.uint8), np.diag([1.0, 1, 2, 1])), entry.label)
    with pytest.raises(TrainingInputError, match=r"label .*label.nii.gz: a 4-D image"):
        load_slices([entry])


def test_slices_of_specks_do_not_take_the_place_of_a_lesion(tmp_path):
    label = np.zeros((20, 20, 40), np.uint8)
    label[5, 5], label[8:14, 8:14, 2] = 1, 1
    for name, volume in (("i", np.random.RandomState(0).rand(20, 20, 40).astype(np.float32)), ("l", label)):
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / f"{name}.nii.gz")
    (chosen,) = load_slices([Entry(tmp_path / "i.nii.gz", tmp_path / "l.nii.gz", {ANY_VALUE: "mass"}, "ct", "brain")])
    assert chosen.lesion.sum() == 36


STORED = {
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int16,  # the values fit
    "int32": torch.int16,
    "float32": torch.float32,
    "float64": torch.float32,
}


@pytest.mark.parametrize("window", [None, (-100.0, 55.5)])
@pytest.mark.parametrize("kind", STORED)
def test_slices_are_kept_in_few_bytes_and_shown_as_the_whole_volume_would_be(tmp_path, kind, window):
    entry = volume_entry(tmp_path)
    values = np.random.RandomState(1).normal(120, 60, (40, 36, 44)).clip(0 if kind[0] == "u" else None, 250)
    values = values.astype(kind) if kind[0] == "f" else values.round().astype(kind)
    values.flat[0] = 251 if kind == "uint8" else 3000.5 if kind[0] == "f" else 3000
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1, 2, 1])), entry.image)
    slices = load_slices([entry], window=window)
    whole = torch.from_numpy(values.astype(np.int32) if kind == "uint16" else values)
    shown = window_of(whole, window).to_model(whole)
    for chosen in (slices[0], slices[-1]):
        position = int(chosen.name.rpartition(" ")[2])
        expected = shown[:, :, position].flip(0, 1).T
        assert torch.equal(chosen.image[0], expected) and chosen.image.dtype == torch.float32
        assert chosen.stored.element_size() <= STORED[kind].itemsize
        assert chosen.stored.untyped_storage().nbytes() == chosen.stored.numel() * chosen.stored.element_size()


def test_numbers_that_no_small_type_holds_stay_as_they_are(tmp_path):
    entry = volume_entry(tmp_path)
    values = np.random.RandomState(1).randint(0, 60000, (40, 36, 44)).astype(np.uint16)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1, 2, 1])), entry.image)
    chosen = load_slices([entry])[0]
    assert chosen.stored.dtype == torch.float32 and float(chosen.stored.max()) > 40000


def test_the_lesions_of_a_slice_share_its_picture_and_label(tmp_path):
    label = np.zeros((40, 40), np.uint8)
    label[2:10, 2:10], label[20:30, 2:12], label[20:30, 25:35] = 1, 1, 2
    first, second, third = load_slices([write_pair(tmp_path, Image.fromarray(np.full((40, 40), 99, np.uint8)), Image.fromarray(label))])
    assert first.stored is second.stored is third.stored and first.labelled is second.labelled is third.labelled


def test_a_lesion_between_many_slices_of_specks_is_found(tmp_path):
    label = np.zeros((32, 32, 100), np.uint8)
    label[::2, ::2] = 1
    label[:, :, 50] = 0
    label[8:14, 8:14, 50] = 1
    for name, volume in (("i", np.random.RandomState(0).rand(32, 32, 100).astype(np.float32)), ("l", label)):
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / f"{name}.nii.gz")
    (chosen,) = load_slices([Entry(tmp_path / "i.nii.gz", tmp_path / "l.nii.gz", {ANY_VALUE: "mass"}, "ct", "brain")])
    assert chosen.lesion.sum() == 36


@pytest.mark.parametrize("suffix", ["jpg", "JPEG"])
def test_the_specks_that_jpeg_leaves_around_an_outline_are_no_lesion(tmp_path, suffix):
    disc = np.hypot(*(np.indices((80, 80)) - 40)) < 15
    Image.fromarray((255 * disc).astype(np.uint8)).save(tmp_path / f"l.{suffix}", format="JPEG", quality=75)
    disc_picture().resize((80, 80)).save(tmp_path / "i.png")
    (chosen,) = load_slices([Entry(tmp_path / "i.png", tmp_path / f"l.{suffix}", {ANY_VALUE: "polyp"}, "endoscopy", "colon")])
    assert np.array_equal(chosen.lesion, disc) and np.array_equal(chosen.labelled, disc)


def test_all_labels_without_a_lesion_are_named_at_once(tmp_path):
    entries = [write_pair(tmp_path, disc_picture(), disc_picture())]
    for name in ("first", "second", "third"):
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / f"{name}.png")
        entries.append(replace(entries[0], label=tmp_path / f"{name}.png"))
    with pytest.raises(TrainingInputError, match=r"label .*first.png shows no lesion .*; likewise .*second.png, .*third.png$"):
        load_slices(entries)
    with pytest.raises(TrainingInputError, match=r"first.png shows no lesion .* if the image is normal$"):
        load_slices(entries[:2])


def test_nested_classes_are_lesions_of_their_unions(tmp_path):
    label = np.zeros((40, 40), np.uint8)
    label[8:30, 8:30], label[14:20, 14:20] = 1, 2
    picture = Image.fromarray(np.full((40, 40), 99, np.uint8))
    entry = replace(write_pair(tmp_path, picture, Image.fromarray(label)), findings={(1, 2): "optic disc", (2,): "optic cup"})
    disc, cup = load_slices([entry])
    assert (disc.finding, int(disc.lesion.sum())) == ("optic disc", 22 * 22)
    assert (cup.finding, int(cup.lesion.sum())) == ("optic cup", 36)


def test_a_finding_without_an_outline_is_a_slice_without_a_lesion(tmp_path):
    disc_picture().save(tmp_path / "i.png")
    entry = Entry(tmp_path / "i.png", None, {ANY_VALUE: "pneumonia"}, "x-ray", "chest", dataset="chests", group="4")
    (chosen,) = load_slices([entry])
    assert chosen.finding == "pneumonia" and not chosen.has_lesion and not chosen.is_normal
    assert (chosen.dataset, chosen.group) == ("chests", "4")
