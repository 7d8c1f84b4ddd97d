import numpy as np
import pytest

from monai_diffaug.training.embedded.boxed_slices import boxed_labels, boxed_rows, twins


@pytest.fixture
def pack(tmp_path):
    """Three slices with a bright disc each; the box of the last one lies in the dark."""
    y, x = np.mgrid[:256, :256]
    noise = np.random.RandomState(0).randint(20, 50, (3, 256, 256))
    images = np.stack([np.where((y - 128) ** 2 + (x - c) ** 2 < 30**2, 220, grey) for c, grey in zip((80, 128, 170), noise, strict=True)])
    boxes = np.array([[50, 98, 110, 158], [98, 98, 158, 158], [5, 5, 9, 9]], np.float32)
    file = tmp_path / "brain_mri_boxes.npz"
    np.savez(file, images=images.astype(np.uint8), boxes_xyxy=boxes, image_class=np.array([0, 2, 1], np.uint8), groups=np.array([4, 4, 7]))
    return file


def test_masks_fill_their_boxes_and_the_doubtful_ones_are_marked(pack):
    with np.load(pack) as archive:
        masks, is_sure = boxed_labels(archive["images"], archive["boxes_xyxy"])
    assert is_sure.tolist() == [True, True, False]
    disc = (np.mgrid[:256, :256][0] - 128) ** 2 + (np.mgrid[:256, :256][1] - 80) ** 2 < 30**2
    overlap = 2 * (masks[0] & disc).sum() / (masks[0].sum() + disc.sum())
    assert overlap > 0.85
    outside = masks[0].copy()
    outside[98:158, 50:110] = False
    assert not outside.any()


def test_the_entries_are_for_training_with_the_class_as_label(pack, tmp_path):
    from PIL import Image

    rows = boxed_rows(pack.parent, tmp_path / "out")
    assert list(rows) == ["training"] and [row["index"] for row in rows["training"]] == [0, 1]
    first, second = rows["training"]
    assert first["group"] == second["group"] == "4" and first["finding"]["1"] == "pituitary tumour"
    assert set(np.unique(np.asarray(Image.open(tmp_path / "out" / second["label"])))) == {0, 3}


def test_a_slice_with_a_near_duplicate_in_another_pack_is_left_out(pack, tmp_path):
    with np.load(pack) as archive:
        similar = archive["images"][:1] // 2  # the same slice, darker
    np.savez(tmp_path / "other.npz", images=similar)
    assert [row["index"] for row in boxed_rows(pack.parent, tmp_path / "out", [tmp_path / "other.npz"])["training"]] == [1]
    assert [row["index"] for row in boxed_rows(pack.parent, tmp_path / "all")["training"]] == [0, 1]


def test_twins_are_near_duplicates_only():
    images = np.random.RandomState(0).randint(0, 255, (4, 64, 64)).astype(np.uint8)
    assert twins(images, images[2:3]).tolist() == [False, False, True, False]


def test_a_folder_without_the_pack_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--packs must be the folder"):
        boxed_rows(tmp_path, tmp_path / "out")
