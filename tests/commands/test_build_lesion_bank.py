from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_diffaug.commands.arguments import WrongInputError
from monai_diffaug.commands.build_lesion_bank import add_parser
from monai_diffaug.data.donor_bank import DonorBank
from monai_diffaug.data.lesion_bank import LesionBank


def run(*arguments: str) -> int:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-q", "--quiet", action="store_true")
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(), common)
    options = parser.parse_args(["lesion-bank", *arguments])
    return int(options.run(options))


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    rng = np.random.RandomState(0)
    for i in range(2):
        Image.fromarray(rng.randint(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / f"i{i}.png")
        label = np.zeros((40, 40), np.uint8)
        label[10:30, 10:30] = 2
        Image.fromarray(label).save(tmp_path / f"l{i}.png")
    entries = [{"image": f"i{i}.png", "label": f"l{i}.png", "patient": "a"} for i in range(2)]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries}))
    return tmp_path / "list.json"


def test_the_bank_of_a_datalist_is_written_and_counted(datalist, tmp_path, capsys):
    out = tmp_path / "bank.npz"
    assert run(str(datalist), "--out", str(out), "--label-value", "2", "--window", "0,200") == 0
    assert capsys.readouterr().out == f"{out}: 2 lesions to transplant; 2 views of the lesions of 2 images\n"
    bank, donors = LesionBank.load(out), DonorBank.load(out)
    assert len(bank) == 2 and bank.window == (0, 200)
    assert [(donor.origin.name, donor.origin.label_value, donor.pixels.dtype.name) for donor in donors.donors] == [
        ("i0.png#1", 2, "uint8"),
        ("i1.png#1", 2, "uint8"),
    ]


def test_groups_of_the_list_that_is_held_out_give_no_donor(datalist, tmp_path):
    rows = json.loads(datalist.read_text())["training"]
    rows[1]["patient"] = "b"
    for held_out, count in (("validation", 1), ("test", 2)):
        datalist.write_text(json.dumps({"training": rows, "validation": [rows[0]]}))
        run(str(datalist), "--out", str(tmp_path / "bank.npz"), "--group-key", "patient", "--held-out", held_out, "--upright", "-q")
        assert len(DonorBank.load(tmp_path / "bank.npz")) == count


def test_images_without_a_label_are_left_out(datalist, tmp_path):
    rows = json.loads(datalist.read_text())["training"]
    without = [{"image": "i0.png"}, {"image": "i1.png", "label": None, "finding": "pneumonia"}]
    datalist.write_text(json.dumps({"training": [*without, *rows]}))
    assert run(str(datalist), "--out", str(tmp_path / "bank.npz"), "-q") == 0
    assert len(LesionBank.load(tmp_path / "bank.npz")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--label-value", "1"], "voxels of value 1"), (["--section", "test"], "test"), (["--group-key", "patient"], "one group")],
)
def test_wrong_input_is_one_line(datalist, tmp_path, options, message):
    with pytest.raises(WrongInputError, match=message):
        run(str(datalist), "--out", str(tmp_path / "bank.npz"), *options)
    assert not (tmp_path / "bank.npz").exists()


ENTRY = {"image": "i0.png", "label": "l0.png"}
WRONG = {
    "no UTF-8": (b'{"training": "\xe9"}', "is no JSON"),
    "no JSON": (b"training:", "is no JSON"),
    "no list": ({"training": "i0.png"}, '"training" must be a list of entries'),
    "no image": ({"training": [ENTRY, {"label": "l1.png"}]}, "sample 1 has no 'image'"),
    "no such image": ({"training": [ENTRY, {**ENTRY, "image": "none.png"}]}, r"training\[1\] cannot be read: .*none\.png"),
    "no image in the file": ({"training": [ENTRY, {**ENTRY, "image": "list.json"}]}, r"training\[1\] cannot be read"),
    "label on another grid": ({"training": [ENTRY, {**ENTRY, "label": "small.png"}]}, "sample 1: mask .* is not on the grid"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_datalist_that_cannot_be_used_is_one_line_that_names_the_entry(datalist, tmp_path, case):
    content, message = WRONG[case]
    Image.fromarray(np.ones((20, 20), np.uint8)).save(tmp_path / "small.png")
    datalist.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(WrongInputError, match=message):
        run(str(datalist), "--out", str(tmp_path / "bank.npz"))


def test_a_group_key_that_an_entry_lacks_is_named(datalist, tmp_path):
    with pytest.raises(WrongInputError, match="sample 0 has no 'hospital'"):
        run(str(datalist), "--out", str(tmp_path / "bank.npz"), "--group-key", "hospital")


def test_an_output_that_is_a_folder_or_below_a_file_is_refused_before_the_images_are_read(datalist, tmp_path):
    for out, message in ((tmp_path, "is a folder"), (datalist / "bank.npz", r"cannot be made: .*list\.json is a file")):
        with pytest.raises(WrongInputError, match=message):
            run(str(tmp_path / "none.json"), "--out", str(out))


def test_a_datalist_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WrongInputError, match=r"none\.json"):
        run(str(tmp_path / "none.json"), "--out", str(tmp_path / "bank.npz"))


def test_a_file_that_is_no_bank_is_not_replaced_and_an_older_bank_is(datalist, tmp_path):
    for name in ("list.json", "i0.png"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(WrongInputError, match=f"{name} is there and is no lesion bank"):
            run(str(datalist), "--out", str(tmp_path / name))
        assert (tmp_path / name).read_bytes() == before
    (tmp_path / "link.npz").symlink_to("list.json")
    with pytest.raises(WrongInputError, match="is no lesion bank"):
        run(str(datalist), "--out", str(tmp_path / "link.npz"))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(WrongInputError, match="is no lesion bank"):
        run(str(datalist), "--out", str(tmp_path / "other.npz"))
    for _ in range(2):
        assert run(str(datalist), "--out", str(tmp_path / "bank.npz"), "-q") == 0
