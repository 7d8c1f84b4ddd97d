"""The bank of variants: identity by content, settings and seed, replacement after its uses, limits, and errors."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Hashable, Mapping
from copy import deepcopy
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, RandFlipd, RandomizableTransform, RandRotate90d, RandSpatialCropd, RandSpatialCropSamplesd

from monai_diffaug.data.variants import DrawVariantd, VariantBank
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd


class Painted(RandomizableTransform):
    """Adds a random number to the image, and a mask and a record: a stand-in for an edit."""

    calls = 0

    def __init__(self, strength: float = 1.0, fails: bool = False) -> None:
        RandomizableTransform.__init__(self, 1.0)
        self.strength, self.fails = strength, fails

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        Painted.calls += 1
        if self.fails:
            raise RuntimeError("no paint")
        self.randomize(None)
        amount = self.strength * self.R.rand()
        mask = data["image"] > 0.5
        return {**data, "image": data["image"] + amount, "mask": mask, "image_diffaug": {"applied": True, "seed": 3}}


def sample(value: float = 0.0) -> dict[Hashable, Any]:
    image = MetaTensor(torch.full((1, 4, 4), value), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])), meta={"filename_or_obj": "a.nii"})
    return {"image": image, "label": torch.zeros(1, 4, 4), "name": f"case {value}"}


def bank(**options: Any) -> VariantBank:
    return VariantBank(**{"transform": Painted(), "seed": 1, "variants": 3, "uses": None, "background": False, **options})


def images_of(one: VariantBank, draws: int, data: dict[Hashable, Any] | None = None) -> list[float]:
    return [float(one.draw(data or sample(), i)["image"].mean()) for i in range(draws)]


@pytest.fixture(autouse=True)
def _reset_calls() -> None:
    Painted.calls = 0


@pytest.mark.parametrize("on_disk", [False, True])
def test_many_draws_need_one_edit_per_variant(on_disk: bool, tmp_path: Path) -> None:
    drawn = images_of(bank(folder=tmp_path if on_disk else None), 12)
    assert Painted.calls == 3 and len(set(drawn)) == 3


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_variant_has_type_and_meta_data_of_the_sample_which_is_not_changed(on_disk: bool, tmp_path: Path) -> None:
    one, original = bank(folder=tmp_path if on_disk else None), sample()
    for _ in range(2):
        result = one.draw(original, 0)
        assert isinstance(result["image"], MetaTensor) and result["image"].meta["filename_or_obj"] == "a.nii"
        assert torch.equal(result["image"].affine, original["image"].affine) and result["image"].dtype == original["image"].dtype
        assert isinstance(result["mask"], MetaTensor) and result["mask"].dtype == torch.bool
        assert result["label"] is original["label"] and result["image_diffaug"] == {"applied": True, "seed": 3}
        assert torch.equal(original["image"], torch.zeros(1, 4, 4)) and "mask" not in original
        result["image"] += 5
        result["image_diffaug"]["seed"] = 0


def test_a_numpy_array_stays_a_numpy_array() -> None:
    class PaintedArray(Painted):
        def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
            self.randomize(None)
            return {**data, "image": (data["image"] + self.R.rand()).astype(np.float32)}

    result = bank(transform=PaintedArray()).draw({"image": np.zeros((1, 4, 4), np.float32)}, 0)
    assert isinstance(result["image"], np.ndarray) and result["image"].dtype == np.float32


def test_variants_depend_on_seed_settings_and_content() -> None:
    first = images_of(bank(), 3)
    assert images_of(bank(), 3) == first
    for other in (bank(seed=2), bank(transform=Painted(0.5))):
        assert not set(images_of(other, 3)) & set(first)
    lifted = [value - 1 for value in images_of(bank(), 3, sample(1.0))]
    assert all(abs(a - b) > 1e-4 for a, b in zip(lifted, first, strict=True))


def test_two_affines_of_one_array_are_two_samples() -> None:
    one = bank()
    moved = sample()
    moved["image"] = MetaTensor(torch.zeros(1, 4, 4), affine=torch.eye(4))
    assert images_of(one, 3) != images_of(one, 3, moved)


def test_with_an_id_key_the_content_does_not_matter() -> None:
    one = bank(id_key="name")
    images_of(one, 3)
    one.draw({**sample(), "label": torch.ones(1, 4, 4)}, 0)
    assert Painted.calls == 3
    with pytest.raises(KeyError, match="no_such_key"):
        bank(id_key="no_such_key").draw(sample(), 0)


def test_a_variant_is_replaced_after_its_uses() -> None:
    one = bank(variants=1, uses=4)
    drawn = images_of(one, 12)
    assert len(set(drawn)) == 3 and all(len(set(drawn[i : i + 4])) == 1 for i in (0, 4, 8))
    assert len(one._stored().known(one._key_of(sample()))) == 1


def test_uses_of_all_processes_with_the_same_folder_are_counted(tmp_path: Path) -> None:
    """A new bank per draw, as in worker processes that start again in each epoch."""
    drawn = [images_of(bank(variants=1, uses=4, folder=tmp_path), 1)[0] for _ in range(12)]
    assert len(set(drawn)) == 3 and all(len(set(drawn[i : i + 4])) == 1 for i in (0, 4, 8))
    assert len(list(tmp_path.glob("*/*"))) == 1  # the newest variant, without uses


def test_memory_has_a_limit_and_a_removed_variant_is_made_again_with_the_same_values() -> None:
    one = bank(limit=4)
    before = images_of(one, 3)
    for value in (1.0, 2.0, 3.0):
        images_of(one, 3, sample(value))
    assert len(one._stored()._variants) == 4  # type: ignore[attr-defined]
    assert images_of(one, 3) == before


def test_the_next_run_reuses_the_variants_of_a_folder(tmp_path: Path) -> None:
    before = images_of(bank(folder=tmp_path), 3)
    Painted.calls = 0
    assert images_of(bank(folder=tmp_path), 3) == before and Painted.calls == 0


def test_a_damaged_file_is_made_again_and_an_old_part_file_is_removed(tmp_path: Path) -> None:
    before = images_of(bank(folder=tmp_path), 3)
    damaged = sorted(tmp_path.glob("*/*.pt"))
    for file in damaged:
        file.write_bytes(file.read_bytes()[:100])
    fresh, old = damaged[0].with_name("1-1.pt.x.part"), damaged[0].with_name("1-1.pt.y.part")
    for file in (fresh, old):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert images_of(bank(folder=tmp_path), 3) == before
    assert fresh.exists() and not old.exists()


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    one = bank(folder=tmp_path / "bank")
    before = images_of(one, 3)
    for file in (tmp_path / "bank").glob("*/*.pt"):
        torch.save({"image": Code()}, file)
    assert images_of(bank(folder=tmp_path / "bank"), 3) == before and not trace.exists()


def test_the_bank_is_filled_in_the_background_after_the_first_draw() -> None:
    one = bank(background=True)
    first = images_of(one, 1)
    deadline = time.monotonic() + 20
    while one.made < 3 and time.monotonic() < deadline:
        one.draw(sample(), 0)
        time.sleep(0.01)
    one.close()
    assert one.made == 3 and set(images_of(one, 3)) >= set(first)
    assert set(images_of(one, 3)) == set(images_of(bank(), 3))


def test_an_error_in_the_background_is_raised_by_the_next_draw() -> None:
    class FailsElsewhere(Painted):
        def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
            if threading.current_thread().name == "variants":
                raise RuntimeError("no paint")
            return super().__call__(data)

    one = bank(transform=FailsElsewhere(), background=True)
    one.draw(sample(), 0)
    deadline = time.monotonic() + 20
    while not one._failed and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match="no paint"):
        one.draw(sample(), 0)
    one.close()
    with pytest.raises(RuntimeError, match="no paint"):
        bank(transform=Painted(fails=True)).draw(sample(), 0)


def test_copies_share_the_bank_and_a_pickle_is_small_and_empty(tmp_path: Path) -> None:
    one = DrawVariantd(bank(folder=tmp_path))
    images_of(one.bank, 3)
    assert deepcopy(one).bank is one.bank
    data = pickle.dumps(one)
    unpickled = pickle.loads(data).bank
    assert len(data) < 100_000 and unpickled is not one.bank
    assert unpickled.made == 0 and images_of(unpickled, 3) == images_of(one.bank, 3)


def test_the_transform_is_reproducible_and_its_batches_collate() -> None:
    draw = DrawVariantd(bank())
    runs = []
    for _ in range(2):
        draw.set_random_state(7)
        runs.append([float(draw(sample())["image"].mean()) for _ in range(8)])
    assert runs[0] == runs[1] and len(set(runs[0])) > 1
    assert list_data_collate([draw(sample()), draw(sample(1.0))])["image"].shape == (2, 1, 4, 4)


def test_transforms_that_are_not_random_and_numbers_below_one_are_refused() -> None:
    with pytest.raises(TypeError, match="random transform"):
        bank(transform=abs)
    for name in ("variants", "uses", "limit"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            bank(**{name: 0})


def test_diffusion_runs_once_per_variant(random_inpainter: str) -> None:
    edit = DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=2, guidance_scale=1.0)
    one = bank(transform=Compose([edit]), variants=2)
    mask = torch.zeros(1, 32, 32)
    mask[:, 10:20, 10:20] = 1
    data = {"image": torch.rand(1, 32, 32) * 255, "mask": mask, "label": mask * 0, "prompt": "ultrasound of breast, benign mass"}
    drawn = [one.draw(data, i) for i in range(6)]
    assert one.made == 2 and len({float(d["image"].sum()) for d in drawn}) == 2
    assert all(d["label"].sum() == mask.sum() and d["image_diffaug"]["applied"] for d in drawn)
    assert len(pickle.dumps(one)) < 100_000


class Adds(RandomizableTransform):
    """Adds a value under the key "extra"."""

    def __init__(self, extra: Any) -> None:
        RandomizableTransform.__init__(self, 1.0)
        self.extra = extra

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, "extra": self.extra}


class Word(StrEnum):
    RAS = "ras"


@pytest.mark.parametrize("on_disk", [False, True])
def test_arrays_numbers_and_texts_in_lists_and_dictionaries_are_restored(on_disk: bool, tmp_path: Path) -> None:
    extra = {"spacing": np.array([1.0, 2.0]), "scores": [np.float64(0.5)], "mix": (0.25, "mass"), "space": Word.RAS, Word.RAS: True}
    one = bank(transform=Adds(extra), variants=1, folder=tmp_path if on_disk else None)
    for _ in range(3):
        restored = one.draw(sample(), 0)["extra"]
        assert restored["spacing"].tolist() == [1.0, 2.0]
        assert {name: value for name, value in restored.items() if name != "spacing"} == {
            "scores": [0.5],
            "mix": (0.25, "mass"),
            "space": "ras",
            "ras": True,
        }
    assert one.made == 1


def test_types_that_a_folder_cannot_restore_are_refused_there_and_allowed_in_memory(tmp_path: Path) -> None:
    transform = Adds({"files": [Path("a.nii")]})
    with pytest.raises(TypeError, match=r"'extra'\['files'\]\[0\] is a PosixPath.*folder=None"):
        bank(transform=transform, folder=tmp_path).draw(sample(), 0)
    assert not list(tmp_path.glob("*/*"))
    assert bank(transform=transform).draw(sample(), 0)["extra"] == {"files": [Path("a.nii")]}


def ramp() -> dict[Hashable, Any]:
    return {"image": MetaTensor(torch.arange(16.0).reshape(1, 4, 4), affine=torch.diag(torch.tensor([2.0, 2, 1, 1])))}


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (RandSpatialCropd("image", (2, 2), random_size=False), r"'image' of the variant is \(1, 2, 2\), of the sample \(1, 4, 4\).*crop"),
        (RandFlipd("image", prob=1.0), "moved 'image' to another affine; flip"),
        (RandRotate90d("image", prob=1.0), "moved 'image' to another affine"),
    ],
)
def test_a_transform_that_moves_the_grid_is_refused(transform: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bank(transform=Compose([transform])).draw(ramp(), 0)


def test_a_bank_that_loads_images_is_refused_because_it_would_lose_their_affine() -> None:
    class Loads(Painted):
        def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
            return {**data, "image": MetaTensor(torch.zeros(1, 4, 4), affine=torch.eye(4))}

    with pytest.raises(ValueError, match="made 'image' of a sample without an image; load images before"):
        bank(transform=Loads()).draw({"image": "a.nii"}, 0)


def test_a_transform_that_returns_several_samples_is_refused() -> None:
    crops = Compose([RandSpatialCropSamplesd("image", (2, 2), 2, random_size=False)])
    with pytest.raises(TypeError, match="made a list of it; crop after DrawVariantd"):
        bank(transform=crops).draw(ramp(), 0)


def test_two_samples_of_different_sizes_with_the_same_identity_are_refused() -> None:
    one = bank(id_key="name")
    one.draw({**sample(), "name": "a"}, 0)
    with pytest.raises(ValueError, match=r"\(1, 4, 4\), of the sample \(1, 6, 6\): two samples have the same id_key"):
        one.draw({"image": MetaTensor(torch.zeros(1, 6, 6)), "label": torch.zeros(1, 6, 6), "name": "a"}, 0)


def test_several_threads_draw_while_variants_are_replaced() -> None:
    one, errors = bank(background=True, uses=1, variants=2, id_key="name", transform=Adds(1)), []

    def draw(first: int) -> None:
        try:
            for i in range(400):
                one.draw({"name": f"{first}-{i % 200}"}, i)
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=draw, args=(first,)) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        one.close()
    assert errors == []


def test_a_bank_on_a_read_only_disk_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = images_of(bank(folder=tmp_path), 3)

    def read_only(file: Path) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", read_only)
    Painted.calls = 0
    assert images_of(bank(folder=tmp_path), 3) == before and Painted.calls == 0
    assert len(list(tmp_path.glob("*/*.pt"))) == 3
