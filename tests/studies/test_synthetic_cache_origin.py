"""Kept images are not taken for those of other weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_diffaug.studies.synthetic_cache import digest_of, require_origin


def test_other_weights_under_the_same_path_have_another_digest_and_training_records_do_not_count(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "training").mkdir(parents=True)
    (model / "weights").write_bytes(b"first")
    before = digest_of.__wrapped__("inpainter", str(model))
    (model / "training" / "log.jsonl").write_text("step 1")
    assert digest_of.__wrapped__("inpainter", str(model)) == before
    (model / "weights").write_bytes(b"other")
    assert digest_of.__wrapped__("inpainter", str(model)) != before
    assert digest_of("medsam", "tiny") != digest_of("validator", "tiny")
    assert digest_of("inpainter", "org/name@main") == "org/name@main"


def test_images_of_other_weights_are_refused_and_images_without_a_note_are_not(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    require_origin(new, {"inpainter": "a", "medsam": "b"})
    (new / "000008.npz").write_bytes(b"")
    require_origin(new, {"inpainter": "a", "medsam": "b"})
    with pytest.raises(ValueError, match="made of another medsam; use another --out"):
        require_origin(new, {"inpainter": "a", "medsam": "c"})
    old.mkdir()
    (old / "000008.npz").write_bytes(b"")
    require_origin(old, {"inpainter": "anything"})
    assert [file.name for file in old.iterdir()] == ["000008.npz"]
