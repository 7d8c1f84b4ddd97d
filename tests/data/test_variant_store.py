"""Stores of variants in memory and in a folder: limits, uses, and files that are incomplete, damaged or contain code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_diffaug.data.variant_store import FolderStore, MemoryStore, VariantKey, VariantStore

Make = Callable[[int], VariantStore]


@pytest.fixture(params=["memory", "folder"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Limit -> a store."""
    return MemoryStore if request.param == "memory" else lambda limit: FolderStore(tmp_path / "store", limit)


def key(sample: str = "s", slot: int = 0, generation: int = 0) -> VariantKey:
    return VariantKey(sample, slot, generation)


def values(number: float = 1.0) -> dict[Any, Any]:
    return {"image": torch.full((2,), number), "prompt": "mass", "numbers": [1, 2.5, (True, None)]}


def test_a_variant_is_returned_until_it_is_discarded(make: Make) -> None:
    store = make(10)
    assert store.get(key()) is None
    store.put(key(), values(3.0))
    result = store.get(key())
    assert result is not None and torch.equal(result["image"], torch.full((2,), 3.0)) and result["numbers"] == [1, 2.5, (True, None)]
    store.discard(key())
    store.discard(key())
    assert store.get(key()) is None and store.known("s") == []


def test_only_the_variants_of_a_sample_are_known(make: Make) -> None:
    store = make(10)
    for each in (key("a", 0, 1), key("a", 12, 0), key("b", 0, 0)):
        store.put(each, values())
    assert sorted(store.known("a")) == [key("a", 0, 1), key("a", 12, 0)] and store.known("c") == []


def test_beyond_the_limit_the_least_recently_used_variant_is_removed(make: Make) -> None:
    store = make(2)
    for slot in range(2):
        store.put(key(slot=slot), values())
        _set_age(store, key(slot=slot), 100 - slot)
    store.get(key(slot=0))
    store.put(key(slot=2), values())
    assert sorted(each.slot for each in store.known("s")) == [0, 2]


def _set_age(store: VariantStore, variant: VariantKey, seconds: int) -> None:
    """The resolution of a file's time may be too coarse for consecutive writes."""
    if isinstance(store, FolderStore):
        now = store._file(variant).stat().st_mtime
        os.utime(store._file(variant), (now - seconds, now - seconds))


def test_uses_are_counted_by_all_stores_of_a_folder_and_end_with_the_variant(tmp_path: Path) -> None:
    one, other = FolderStore(tmp_path, 10), FolderStore(tmp_path, 10)
    one.put(key(), values())
    assert [one.used(key()), other.used(key()), one.used(key())] == [1, 2, 3]
    other.discard(key())
    assert not list(tmp_path.glob("*/*")) and MemoryStore(10).used(key()) == 0


def test_a_crash_during_a_write_leaves_no_incomplete_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path, 10)

    def half(values: Any, file: Path) -> None:
        Path(file).write_bytes(b"PK half of an archive")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            store.put(key(), values())
    assert store.get(key()) is None and store.known("s") == []
    store.put(key(), values())
    assert store.get(key()) is not None and store.known("s") == [key()]


def test_a_full_disk_is_an_os_error_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(values: Any, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nframe #0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"0-0.pt cannot be written, is the disk full\? \(.*unexpected pos 64 vs 0\)$"):
        FolderStore(tmp_path, 10).put(key(), values())
    assert not list(tmp_path.glob("*/*"))


def test_a_damaged_file_counts_as_missing_and_is_removed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 10)
    store.put(key(), values())
    (file,) = tmp_path.glob("*/*.pt")
    file.write_bytes(file.read_bytes()[:100])
    assert store.get(key()) is None and not file.exists()


def test_values_that_cannot_be_read_back_are_refused_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'record'\['file'\]\[1\] is a PosixPath.*folder=None"):
        FolderStore(tmp_path, 10).put(key(), {"record": {"file": [1, Path("a.nii")]}})
    assert not list(tmp_path.glob("*/*"))
