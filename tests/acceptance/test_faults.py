"""What goes wrong in real runs, on purpose: nothing is lost, nothing is silent, nothing hangs."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, SmartCacheDataset
from monai.transforms import Compose

from monai_diffaug.commands.cli import main
from monai_diffaug.edit.options import InpaintOptions, Run, SoftEdge
from monai_diffaug.errors import DroppedSampleError, GridMismatchError
from monai_diffaug.files.image_file import read_picture, write_picture
from monai_diffaug.geometry.slices import PLANES, from_slices, slice_plane, to_slices
from monai_diffaug.models import registry
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.medsam import load_medsam
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.transforms.cached_random import CachedRandomd
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

PROMPT = "ultrasound of breast, benign mass"


def innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@pytest.mark.slow
def test_memory_that_runs_out_in_the_middle_of_a_volume_changes_nothing_but_the_batch(inpaint, samples, monkeypatch) -> None:
    (volume,) = samples(1, (30, 32, 9))
    volume["mask"][..., 1:8] = volume["mask"][..., 1:2]
    transform = inpaint(options=InpaintOptions(run=Run(slice_batch_size=4)))
    expected = transform.edit(volume, seed=3)
    from diffusers import UNet2DConditionModel

    forward, sizes = UNet2DConditionModel.forward, []

    def scarce(self: Any, latents: torch.Tensor, *args: Any, **options: Any) -> Any:
        sizes.append(len(latents))
        if len(sizes) == 4:  # the second batch, at its second step
            raise torch.OutOfMemoryError("no memory")
        return forward(self, latents, *args, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", scarce)
    got = transform.edit(volume, seed=3)
    assert sizes == [4, 4, 3, 3, 1, 1, 1, 1, 1, 1]
    assert torch.allclose(got["image"], expected["image"], atol=1e-3)
    assert got["image_diffaug"] == pytest.approx(expected["image_diffaug"], abs=1e-3)


def test_memory_that_never_suffices_is_an_error_or_a_record(inpaint, sample, monkeypatch) -> None:
    def never(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Inpainter, "decode", never)
    with pytest.raises(torch.OutOfMemoryError):
        inpaint().edit(sample, seed=1)
    result = inpaint(on_error="passthrough").edit(sample, seed=1)
    assert result["image"] is sample["image"] and "OutOfMemoryError: no memory" in result["image_diffaug"]["reason"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0], ids=["NaN", "infinity", "black"])
def test_a_model_that_fails_leaves_the_sample_as_it_was_and_says_so(value, inpaint, sample, monkeypatch) -> None:
    monkeypatch.setattr(Inpainter, "decode", lambda self, z: torch.full((len(z), 3, 64, 64), value))
    result = Compose([inpaint()])(sample)
    assert result["image"] is sample["image"] and result["label"] is sample["label"]
    assert result["image_diffaug"]["applied"] is False and result["image_diffaug"]["reason"]


def nothing_found(images: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(images[:, :1])


@pytest.mark.parametrize("on_reject", ["original", "retry"])
def test_a_validator_that_always_rejects_gives_back_every_original(on_reject, inpaint, samples, unet_calls) -> None:
    items = samples(3)
    transform = LatentValidated(
        "image", label_key="label", inpaint=inpaint(), model=nothing_found, on_reject=on_reject, max_tries=2
    ).set_random_state(seed=1)
    tries = 2 if on_reject == "retry" else 1
    (batch,) = DataLoader(Dataset(items, transform), batch_size=3)
    assert unet_calls.total == 3 * tries * 2
    for i, item in enumerate(items):
        assert torch.equal(batch["image"][i], item["image"]) and torch.equal(batch["label"][i], item["label"])
    assert batch["image_diffaug"]["accepted"].tolist() == [False] * 3 and batch["image_diffaug"]["tries"].tolist() == [tries] * 3
    assert transform.statistics == {"accepted": 0, "rejected": 3, "retried": 3 * (tries - 1)}


def test_a_dropped_sample_raises_its_own_error_class(inpaint, sample) -> None:
    transform = LatentValidated("image", inpaint=inpaint(), model=nothing_found, on_reject="drop")
    with pytest.raises(RuntimeError) as raised:
        Compose([transform])(sample)
    assert isinstance(innermost(raised.value), DroppedSampleError)


def test_a_smart_cache_with_failing_replacements_goes_on_when_errors_pass_through(inpaint, samples) -> None:
    """With on_error="raise" MONAI would wait for the replacement for ever."""
    items = samples(4)
    for item in items[2:]:
        item["image"][0, 0, 0] = float("nan")
    transform = Compose([CachedRandomd(inpaint(on_error="passthrough"), seed=1, id_key="id")])
    dataset = SmartCacheDataset(items, transform, cache_num=2, replace_rate=1.0, shuffle=False, progress=False)
    dataset.start()
    dataset.update_cache()
    reasons = [dataset[i]["image_diffaug"]["reason"] for i in range(2)]
    dataset.shutdown()
    assert all("non-finite" in reason for reason in reasons)


def test_a_sample_without_its_mask_names_the_transform_that_makes_one(inpaint, sample) -> None:
    del sample["mask"]
    with pytest.raises(RuntimeError) as raised:
        Compose([inpaint()])(sample)
    assert isinstance(innermost(raised.value), KeyError) and "MedSAMMaskd" in str(innermost(raised.value))


@pytest.mark.parametrize("key", ["mask", "label"])
def test_a_mask_or_label_on_another_grid_names_both_shapes_and_the_way_out(key, inpaint, sample) -> None:
    sample[key] = sample[key][:, :-3]
    with pytest.raises(RuntimeError) as raised:
        Compose([inpaint()])(sample)
    fault = innermost(raised.value)
    assert isinstance(fault, GridMismatchError)
    assert all(part in str(fault) for part in ("(1, 37, 44)", "(1, 40, 44)", "ResampleToMatchd"))


IMAGES: dict[str, Callable[[np.random.RandomState], np.ndarray]] = {
    "constant": lambda r: np.full((1, 40, 44), 7, np.float32),
    "zero": lambda r: np.zeros((1, 40, 44), np.float32),
    "int64": lambda r: r.randint(-(2**40), 2**40, (1, 40, 44)),
    "int32": lambda r: r.randint(-(2**30), 2**30, (1, 40, 44)).astype(np.int32),
    "uint16": lambda r: r.randint(0, 2**16, (1, 40, 44)).astype(np.uint16),
    "int8": lambda r: r.randint(-128, 128, (1, 40, 44)).astype(np.int8),
    "float64": lambda r: r.rand(1, 40, 44),
    "float16": lambda r: r.rand(1, 40, 44).astype(np.float16),
    "bool": lambda r: r.rand(1, 40, 44) > 0.5,
    "one pixel": lambda r: r.rand(1, 1, 1).astype(np.float32),
    "one row": lambda r: r.rand(1, 1, 53).astype(np.float32),
    "prime": lambda r: r.rand(3, 37, 53).astype(np.float32),
    "prime volume": lambda r: r.rand(1, 17, 19, 3).astype(np.float32),
    "one slice": lambda r: r.rand(1, 23, 29, 1).astype(np.float32),
    "huge values": lambda r: (r.rand(1, 40, 44) * 1e30).astype(np.float32),
    "tiny values": lambda r: (r.rand(1, 40, 44) * 1e-30).astype(np.float32),
}


@pytest.mark.parametrize("cover", ["part", "all", "nothing"])
@pytest.mark.parametrize("name", IMAGES)
def test_odd_images_keep_their_type_their_finiteness_and_every_voxel_outside(name, cover, inpaint) -> None:
    image = IMAGES[name](np.random.RandomState(0))
    mask = np.full((1, *image.shape[1:]), cover == "all", np.uint8)
    if cover == "part":
        mask[0, : max(1, mask.shape[1] // 2), : max(1, mask.shape[2] // 2)] = 1
    before = image.copy()
    result = Compose([inpaint(options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=0)), label_key=None)])(
        {"image": image, "mask": mask, "prompt": PROMPT}
    )
    after = result["image"]
    assert isinstance(after, np.ndarray) and after.dtype == image.dtype and after.shape == image.shape
    assert np.array_equal(image, before) and np.isfinite(after.astype(np.float64)).all()
    outside = np.broadcast_to(mask == 0, image.shape)
    assert after[outside].tobytes() == image[outside].tobytes()
    assert result["image_diffaug"]["applied"] is (cover != "nothing")
    assert result["image_diffaug"]["reason"] == ("empty mask" if cover == "nothing" else "")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_image_with_non_finite_voxels_is_refused_or_passed_through(bad, inpaint) -> None:
    image = np.random.RandomState(0).rand(1, 40, 44).astype(np.float32)
    image[0, 30, 30] = bad
    item = {"image": image, "mask": np.ones((1, 40, 44), np.uint8), "prompt": PROMPT}
    with pytest.raises(ValueError, match="non-finite.*nan_to_num"):
        inpaint(label_key=None).edit(item, seed=1)
    assert inpaint(label_key=None, on_error="passthrough").edit(item, seed=1)["image"] is image


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.fixture
def folder(random_inpainter: str, tmp_path: Path) -> Path:
    registry.clear()
    return Path(shutil.copytree(random_inpainter, tmp_path / "model"))


def use(model: Path) -> None:
    DiffusionLocalInpaint(str(model), num_inference_steps=1).apply(torch.rand(1, 40, 44), torch.ones(1, 40, 44), PROMPT, seed=1)


def test_a_truncated_checkpoint_is_named(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot be loaded"):
        use(folder)


def test_a_checkpoint_of_another_architecture_is_named(folder: Path) -> None:
    config = folder / "unet/config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim": 128', '"cross_attention_dim": 64'))
    with pytest.raises(ValueError, match="cannot be loaded"):
        use(folder)


def test_a_checkpoint_without_one_of_its_files_is_named(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        use(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_pickle_with_code_in_a_model_folder_is_refused_and_not_run(part: str, folder: Path, tmp_path: Path) -> None:
    for weights in (folder / part).glob("*.safetensors"):
        weights.unlink()
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    (folder / part / name).write_bytes(pickle.dumps({"weight": Code(tmp_path / "ran")}))
    with pytest.raises(ValueError, match="cannot be loaded"):
        use(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("save", [lambda obj, path: path.write_bytes(pickle.dumps(obj)), torch.save], ids=["pickle", "torch"])
def test_a_sam_checkpoint_with_code_is_refused_and_not_run(save, tmp_path: Path) -> None:
    path = tmp_path / "medsam.pth"
    save({"image_encoder.weight": Code(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match="medsam.pth"):
        load_medsam(ModelSpec("medsam", str(path)))
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def volume_files(tmp_path: Path) -> Path:
    source = tmp_path / "in"
    source.mkdir()
    affine = np.diag([-1.0, 1.5, 2, 1])
    nib.save(nib.Nifti1Image(np.random.RandomState(0).randint(0, 900, (24, 20, 6)).astype(np.int16), affine), source / "ct.nii.gz")
    mask = np.zeros((24, 20, 6), np.uint8)
    mask[8:14, 7:13, 1:5] = 1
    nib.save(nib.Nifti1Image(mask, affine), source / "mask.nii.gz")
    return source


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_full_disk_leaves_no_half_file_and_keeps_the_old_one(suffix, volume_files: Path, tmp_path: Path, monkeypatch) -> None:
    image, target = read_picture(volume_files / "ct.nii.gz"), tmp_path / f"out{suffix}"
    target.write_bytes(b"the old file")

    def full(picture: Any, path: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_picture(image.stored, image, target)
    assert target.read_bytes() == b"the old file"
    assert [path.name for path in tmp_path.glob("*out*")] == [target.name] and not list(tmp_path.glob(".*"))


def command(volume_files: Path, out: Path, model: str) -> list[str]:
    files = [str(volume_files / "ct.nii.gz"), "--mask", str(volume_files / "mask.nii.gz")]
    return [
        "augment",
        *files,
        "--prompt",
        PROMPT,
        "--out",
        str(out),
        "--model",
        model,
        "--num-inference-steps",
        "2",
        "--guidance-scale",
        "1",
        "-q",
    ]


def test_the_command_says_that_the_disk_is_full_and_leaves_no_file(volume_files, random_inpainter, tmp_path, monkeypatch, capsys) -> None:
    def full(picture: Any, path: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    out = tmp_path / "out"
    assert main(command(volume_files, out, random_inpainter)) != 0
    assert "No space left" in capsys.readouterr().err
    assert not [path for path in out.rglob("*") if path.is_file()]


def test_ctrl_c_in_a_volume_leaves_no_file_and_a_session_that_works(volume_files, random_inpainter, tmp_path, monkeypatch) -> None:
    from diffusers import UNet2DConditionModel

    forward, calls = UNet2DConditionModel.forward, []

    def interrupted(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(self, *args, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", interrupted)
    out = tmp_path / "out"
    with contextlib.suppress(KeyboardInterrupt):
        assert main(command(volume_files, out, random_inpainter)) != 0
    assert len(calls) == 2 and not [path for path in out.rglob("*") if path.is_file()]
    assert main(command(volume_files, out, random_inpainter)) == 0  # no lock is held, no state is half done
    assert len(list(out.rglob("*.nii.gz"))) == 2


@settings(max_examples=60, deadline=None)
@given(
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3),
    st.tuples(*[st.floats(0.2, 9.0)] * 3),
    st.floats(-0.5, 0.5),
    st.sampled_from(sorted(PLANES)),
    st.tuples(*[st.integers(1, 5)] * 3),
)
def test_slices_are_anatomical_and_reversible_for_any_orientation_spacing_and_tilt(order, signs, spacing, tilt, plane, shape) -> None:
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ (np.eye(3)[:, list(order)] * signs) @ np.diag(spacing)
    chosen = slice_plane(affine, plane)
    volume = torch.rand(2, *shape)
    assert torch.equal(from_slices(to_slices(volume, chosen), chosen), volume)
    for (world, sign), axis, flip in zip(PLANES[plane], chosen.axes, chosen.flips, strict=True):
        direction = turn.T @ affine[:3, axis] / spacing[axis]  # without the tilt, the axis is a world axis
        assert abs(direction[world]) == pytest.approx(1)
        assert np.sign(direction[world]) * (-1 if flip else 1) == sign
