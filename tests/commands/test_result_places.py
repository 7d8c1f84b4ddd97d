from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_diffaug.commands.arguments import WrongInputError
from monai_diffaug.commands.result_places import check_result_places
from monai_diffaug.files.whole_file import content_hash

NAME = "a_diffaug"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A picture in its own folder."""
    (tmp_path / "in").mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "in/a.png")
    return tmp_path / "in/a.png"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder of results."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def write_results(out: Path, image: Path) -> None:
    """Write what an earlier command left: a result, its mask and the record."""
    hashes = {}
    for name in (f"{NAME}.png", f"{NAME}_mask.png"):
        (out / name).write_bytes(name.encode())
        hashes[name] = content_hash(out / name)
    record = {"input": {"image": str(image), "image_sha256": content_hash(image)}, "sha256": hashes}
    (out / f"{NAME}.json").write_text(json.dumps(record))


def check(out: Path, image: Path, **options) -> None:
    check_result_places(out, [NAME], image, content_hash(image), **options)


def test_an_earlier_result_of_the_same_image_is_replaced_also_if_the_image_moved(out, image, tmp_path) -> None:
    check(out, image)
    write_results(out, image)
    check(out, image)
    (tmp_path / "elsewhere").mkdir()
    check(out, image.rename(tmp_path / "elsewhere/a.png"))


def test_the_result_of_another_image_of_the_same_name_stays(out, image, tmp_path) -> None:
    write_results(out, image)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other/a.png"
    Image.new("L", (8, 8)).save(other)
    with pytest.raises(WrongInputError, match=r"is of another image, .*in/a\.png, than .*other/a\.png.*--overwrite"):
        check(out, other)
    check(out, other, overwrite=True)


@pytest.mark.parametrize("place", [f"{NAME}.png", f"{NAME}_mask.png", f"{NAME}_label.png", f"{NAME}.json"])
def test_a_foreign_file_at_the_place_of_a_result_stays(out, image, place) -> None:
    (out / place).write_text("{}")
    with pytest.raises(WrongInputError, match=f"{place} is there and {NAME}.json does not say"):
        check(out, image)
    check(out, image, overwrite=True)


def test_a_result_that_was_changed_by_hand_stays(out, image) -> None:
    write_results(out, image)
    (out / f"{NAME}_mask.png").write_bytes(b"corrected")
    with pytest.raises(WrongInputError, match=f"{NAME}_mask.png is not as {NAME}.json describes it"):
        check(out, image)


def test_a_label_that_no_earlier_command_wrote_stays(out, image) -> None:
    write_results(out, image)
    (out / f"{NAME}_label.png").write_bytes(b"by hand")
    with pytest.raises(WrongInputError, match=f"{NAME}_label.png is not as"):
        check(out, image)


@pytest.mark.parametrize("link", ["symlink", "hardlink", "link at the result"])
@pytest.mark.parametrize("role", ["image", "mask"])
def test_an_input_that_is_the_same_file_as_a_result_is_refused_even_with_overwrite(out, image, link, role) -> None:
    result = out / f"{NAME}.png"
    result.write_bytes(image.read_bytes())
    reached = image.parent / "reached.png"
    if link == "symlink":
        reached.symlink_to(result)
    elif link == "hardlink":
        reached.hardlink_to(result)
    else:
        reached.write_bytes(result.read_bytes())
        result.unlink()
        result.symlink_to(reached)
    for overwrite in (False, True):
        with pytest.raises(WrongInputError, match=r"same file as .*a_diffaug\.png, would be written over"):
            if role == "image":
                check(out, reached, overwrite=overwrite)
            else:
                check(out, image, others=[reached], overwrite=overwrite)


def test_an_input_at_the_place_of_a_result_is_refused(out, image) -> None:
    mask = out / f"{NAME}_mask.png"
    mask.write_bytes(image.read_bytes())
    with pytest.raises(WrongInputError, match=r"a_diffaug_mask\.png, would be written over"):
        check(out, image, others=[mask], overwrite=True)


def test_a_read_only_result_and_a_folder_stay_even_with_overwrite(out, image) -> None:
    write_results(out, image)
    (out / f"{NAME}.png").chmod(0o444)
    with pytest.raises(WrongInputError, match="read-only and is not replaced"):
        check(out, image, overwrite=True)
    (out / f"{NAME}.png").chmod(0o644)
    (out / f"{NAME}_label.png").mkdir()
    with pytest.raises(WrongInputError, match="is a folder"):
        check(out, image, overwrite=True)
