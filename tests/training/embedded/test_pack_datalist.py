"""The datalist made of the packs: no image, label or split differs from the packs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_diffaug.prompts import NORMAL, vocabulary_of
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.embedded.pack_datalist import PACKS, main, pack_datalist
from monai_diffaug.training.read_entry import read_entry


def write_pack(folder: Path, name: str, **arrays: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    """A grey pack with a normal image and two groups of near-duplicates, a colour pack, and a pack without labels."""
    rng = np.random.RandomState(0)
    labels = np.zeros((12, 16, 16), np.uint8)
    labels[:8, 4:9, 5:12], labels[4:8, 6, 6] = 1, 2
    folder = tmp_path / "packs"
    grey, colour = rng.randint(0, 256, (12, 16, 16)).astype(np.uint8), rng.randint(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    groups = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9], np.int32)
    classes = np.array(["background", "benign mass", "malignant mass"])
    write_pack(folder, "breast_ultrasound", images=grey, labels=labels, groups=groups, classes=classes)
    write_pack(folder, "fundus_disc_cup", images=colour, labels=labels, groups=groups, classes=classes)
    image_class = np.arange(12, dtype=np.uint8) % 2
    write_pack(folder, "chest_xray", images=grey, image_class=image_class, classes=np.array(["no finding", "pneumonia"]))
    return folder


def test_pictures_and_labels_hold_the_numbers_of_the_pack(packs: Path, tmp_path: Path) -> None:
    file = pack_datalist(packs, tmp_path / "out", ["breast_ultrasound", "fundus_disc_cup"])
    entries = {entry.image: entry for section in ("training", "validation") for entry in read_datalist(file, section=section)}
    for name in ("breast_ultrasound", "fundus_disc_cup"):
        with np.load(packs / f"{name}.npz") as archive:
            for i, (image, label) in enumerate(zip(archive["images"], archive["labels"], strict=True)):
                entry = entries.pop(tmp_path / "out" / name / f"{i:04d}.png")
                content = read_entry(entry)
                assert np.array_equal(content.image.permute(1, 2, 0).squeeze(-1), image)
                assert np.array_equal(content.ids[0], label) and entry.dataset == name
                assert entry.group == str(archive["groups"][i]) and entry.is_normal == (not label.any())
    assert not entries


def test_a_group_is_wholly_in_one_list_and_each_class_is_in_both(packs: Path, tmp_path: Path) -> None:
    rows = json.loads(pack_datalist(packs, tmp_path / "out", ["breast_ultrasound"]).read_text())
    groups = {section: {row["group"] for row in rows[section]} for section in ("training", "validation")}
    assert not groups["training"] & groups["validation"] and len(groups["training"] | groups["validation"]) == 10
    for section in rows:
        assert {row["finding"] == NORMAL for row in rows[section]} == {True, False}
        assert [row["index"] for row in rows[section]] == sorted(row["index"] for row in rows[section])
    assert json.loads(pack_datalist(packs, tmp_path / "again", ["breast_ultrasound"]).read_text()) == rows


def test_the_optic_disc_is_rim_and_cup_together(packs: Path, tmp_path: Path) -> None:
    file = pack_datalist(packs, tmp_path / "out", ["fundus_disc_cup"])
    entry = next(entry for entry in read_datalist(file) if not entry.is_normal and (np.asarray(Image.open(entry.label)) == 2).any())
    masks = dict(read_entry(entry).masks())
    label = np.asarray(Image.open(entry.label))
    assert np.array_equal(masks["optic disc"][0], label > 0) and np.array_equal(masks["optic cup"][0], label == 2)


def test_classes_of_whole_images_are_findings_without_an_outline(packs: Path, tmp_path: Path) -> None:
    entries = read_datalist(pack_datalist(packs, tmp_path / "out", ["chest_xray"]))
    findings = {int(entry.image.stem) % 2: list(entry.findings.values()) for entry in entries}
    assert findings == {0: [], 1: ["pneumonia"]} and all(entry.label is None for entry in entries)


def test_the_command_says_what_it_wrote_and_refuses_unknown_names(packs: Path, tmp_path: Path, capsys) -> None:
    main(["--packs", str(packs), "--out", str(tmp_path / "out"), "--only", "chest_xray"])
    printed = capsys.readouterr().out
    assert "10 training, 2 validation" in printed
    for arguments, message in ((["--only", "spine"], "no data set 'spine'"), (["--only", "spine_mri"], "spine_mri.npz does not exist")):
        with pytest.raises(SystemExit, match="2"):
            main(["--packs", str(packs), "--out", str(tmp_path / "out"), *arguments])
        assert message in capsys.readouterr().err


def test_every_finding_of_the_packs_is_a_word_of_its_vocabulary() -> None:
    for pack in PACKS:
        assert set(pack.findings.values()) <= set(vocabulary_of(pack.modality).findings[pack.anatomy])


def test_the_split_of_the_real_packs_is_the_one_that_the_shipped_models_were_trained_on(real_data: Path, tmp_path: Path) -> None:
    names = ["breast_ultrasound", "spleen_ct", "chest_xray"]
    rows = json.loads(pack_datalist(real_data, tmp_path, names).read_text())
    counts = {name: [sum(row["dataset"] == name for row in rows[section]) for section in ("training", "validation")] for name in names}
    numbers = {name: [row["index"] for row in rows["validation"] if row["dataset"] == name] for name in names}
    assert counts == {"breast_ultrasound": [474, 123], "spleen_ct": [14, 4], "chest_xray": [256, 64]}
    assert {name: sum(indices) for name, indices in numbers.items()} == {"breast_ultrasound": 37862, "spleen_ct": 33, "chest_xray": 10212}
