"""The bundle, run as a user runs it: small images, one epoch, one diffusion step, the embedded models."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out
from monai.utils import set_determinism
from PIL import Image

from monai_diffaug import DiffusionLocalInpaintd, LatentValidated, MedSAMMaskd, TextPromptd
from monai_diffaug.bundles.folders import bundle_folder, bundle_names, copy_bundle
from monai_diffaug.training.slice_pictures import picture_items

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = bundle_folder("local_augmentation") / "configs"
TINY = {"limit": 4, "spatial_size": [64, 64], "batch_size": 2, "num_inference_steps": 1, "augment_prob": 1.0, "device": "cpu"}
# The fields that MONAI's own schema of 2024-07-25 asks for. That file is published without a licence, so it is not copied here;
# verify_metadata reads what lies at ``filepath`` and downloads only when nothing does.
TENSOR = {"type": "object", "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"]}
SCHEMA = {
    "type": "object",
    "properties": {
        **{name: {"type": "string"} for name in ("schema", "version", "monai_version", "task", "description", "authors", "copyright")},
        **{name: {"type": "object"} for name in ("changelog", "required_packages_version", "eval_metrics")},
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "properties": {part: {"type": "object", "additionalProperties": TENSOR} for part in ("inputs", "outputs")},
            "required": ["inputs", "outputs"],
        },
    },
    "required": [
        *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
        *("task", "description", "authors", "copyright", "network_data_format"),
    ],
}


@pytest.fixture(autouse=True)
def random_state() -> Iterator[None]:
    """The configs fix the seeds of the process they run in."""
    yield
    set_determinism(None)


@pytest.fixture(scope="session")
def breast_list(packed: Callable[..., Path]) -> Path:
    """The datalist of breast ultrasound."""
    return packed("breast_ultrasound")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_bundle("local_augmentation", tmp_path_factory.mktemp("work") / "bundle")


def overrides_for(folder: Path, data: Path, **more: Any) -> dict[str, Any]:
    return {**TINY, "bundle_root": str(folder), "data": str(data), **more}


def run_bundle(launcher: list[str], folder: Path, configs: list[str], overrides: dict[str, Any]) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "CUDA_VISIBLE_DEVICES": ""}
    files = [str(folder / "configs" / name) for name in configs]
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in overrides.items()}
    arguments = [text for name, value in texts.items() for text in (f"--{name}", value)]
    command = [sys.executable, *launcher, "-m", "monai.bundle", "run", "--config_file", str(files), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=folder)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def run_here(folder: Path, configs: list[str], kind: str, overrides: dict[str, Any]) -> ConfigWorkflow:
    files = [str(folder / "configs" / name) for name in configs]
    workflow = ConfigWorkflow(files, workflow_type=kind, logging_file=False, **overrides)
    workflow.initialize()
    return workflow


def held_out_names(data: Path, limit: int | None = None) -> list[str]:
    return [item["image"].meta["filename_or_obj"] for item in picture_items(str(data), "validation", limit=limit)]


@pytest.fixture(scope="module")
def trained(bundle: Path, breast_list: Path) -> tuple[Path, str]:
    """A folder with models/model.pt, and what the training printed."""
    overrides = overrides_for(bundle, breast_list, epochs=1)
    overrides.pop("device")
    return bundle, run_bundle([], bundle, ["train.yaml"], overrides)


@pytest.mark.slow
def test_training_runs_from_the_command_line_and_leaves_a_checkpoint(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    state = torch.load(folder / "models" / "model.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())
    losses = [float(text) for text in re.findall(r"train_loss: ([\d.]+)", printed)]
    assert losses and all(0 < loss < 10 for loss in losses)
    assert "val_mean_dice" in printed


def test_the_training_data_passes_through_the_four_transforms(bundle: Path, breast_list: Path) -> None:
    workflow = run_here(bundle, ["train.yaml"], "train", overrides_for(bundle, breast_list))
    assert workflow.check_properties() == []
    dataset = workflow.train_dataset
    steps = [type(step) for step in dataset.transform.flatten().transforms]
    order = [steps.index(kind) for kind in (MedSAMMaskd, TextPromptd, DiffusionLocalInpaintd, LatentValidated)]
    assert order == sorted(order)
    items = [dataset[i] for i in range(len(dataset))]
    assert all(set(item) == {"image", "label", "image_diffaug"} for item in items)
    assert all(item["image"].shape == (1, 64, 64) and item["image"].min() >= 0 and item["image"].max() <= 1 for item in items)
    records = [item["image_diffaug"] for item in items]
    assert any(record["n_slices"] == 1 and "breast" in record["prompt"] for record in records), records
    assert any(record["score"] >= 0 for record in records), "the validator has judged none"


def test_evaluation_scores_each_image_by_its_name(trained: tuple[Path, str], breast_list: Path) -> None:
    folder, _ = trained
    workflow = run_here(folder, ["train.yaml", "evaluate.yaml"], "train", overrides_for(folder, breast_list))
    workflow.run()
    workflow.finalize()
    with (folder / "eval" / "val_mean_dice_raw.csv").open() as file:
        rows = [re.split(r"[\t,]", row[0] if len(row) == 1 else ",".join(row)) for row in csv.reader(file)]
    names = [Path(row[0]).name for row in rows[1:]]
    assert names == held_out_names(breast_list, limit=4)
    assert (folder / "eval" / "metrics.csv").is_file()


def test_inference_writes_a_mask_for_each_image_on_its_own_grid(trained: tuple[Path, str], breast_list: Path, tmp_path: Path) -> None:
    folder, _ = trained
    overrides = {"bundle_root": str(folder), "data": str(breast_list), "limit": 3, "spatial_size": [64, 64], "device": "cpu"}
    workflow = run_here(folder, ["inference.yaml"], "infer", {**overrides, "output_dir": str(tmp_path)})
    assert workflow.check_properties() == []
    workflow.run()
    names = held_out_names(breast_list, limit=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{Path(name).stem}_mask.png" for name in names)
    for path in tmp_path.iterdir():
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (256, 256) and set(np.unique(pixels)) <= {0, 255}


def test_the_written_mask_is_upright_and_not_shifted(bundle: Path, breast_list: Path, tmp_path: Path) -> None:
    """A network that marks what is brighter than a quarter: the file must be exactly that picture."""
    conv = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    overrides = {"data": str(breast_list), "limit": 2, "spatial_size": [256, 256], "device": "cpu", "output_dir": str(tmp_path)}
    workflow = run_here(bundle, ["inference.yaml"], "infer", {**overrides, "network_def": conv, "handlers": []})
    network = workflow.network_def
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1))
        network.bias.copy_(torch.tensor([0.25, 0.0]))
    workflow.run()
    for item in picture_items(str(breast_list), "validation", limit=2):
        image = item["image"].as_tensor()[0].numpy()
        pixels = np.asarray(Image.open(tmp_path / f"{Path(item['image'].meta['filename_or_obj']).stem}_mask.png"))
        assert (image != image.T).any()
        np.testing.assert_array_equal(pixels == 255, image.astype(np.float32) / 255 > 0.25)


@pytest.mark.slow
def test_any_datalist_is_trained_on_and_segmented(bundle: Path, user_datalist: Path, tmp_path: Path) -> None:
    """Pictures of several sizes and a volume, with other words; the masks lie on their grids."""
    words = {"anatomy": "thyroid", "finding": ["benign nodule", "malignant nodule"], "limit": None}
    overrides = overrides_for(bundle, user_datalist, epochs=1, ckpt_dir=str(tmp_path), **words)
    workflow = run_here(bundle, ["train.yaml"], "train", overrides)
    workflow.run()
    workflow.finalize()
    inference = {"ckpt_path": str(tmp_path / "model.pt"), "spatial_size": [64, 64], "output_dir": str(tmp_path / "masks"), "device": "cpu"}
    run_here(bundle, ["inference.yaml"], "infer", {**inference, "data": str(user_datalist)}).run()
    sizes = {path.name: np.asarray(Image.open(path)).shape for path in (tmp_path / "masks").iterdir()}
    assert sizes["validation0_mask.png"] == (112, 112) and sizes["validation1_mask.png"] == (104, 112)
    assert len(sizes) == 12 + 4 and "validation_image_slice002_mask.png" in sizes


@pytest.mark.slow
def test_two_processes_train_one_network_with_different_noise(bundle: Path, breast_list: Path, tmp_path: Path) -> None:
    tell = bundle / "configs" / "tell.yaml"
    tell.write_text(
        "run:\n"
        "  - $@train::trainer.run()\n"
        "  - $print(' '.join(map(str, ['rank', dist.get_rank(), dist.get_world_size(), monai.utils.get_seed(), "
        "sum(p.double().abs().sum().item() for p in @network.parameters())])) + os.linesep, end='')\n"
    )
    overrides = overrides_for(bundle, breast_list, epochs=1, ckpt_dir=str(tmp_path))
    overrides.pop("device")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    printed = run_bundle(launcher, bundle, ["train.yaml", "multi_gpu_train.yaml", "tell.yaml"], overrides)
    told = sorted(re.findall(r"rank (\d) (\d) (\d+) ([\d.]+)", printed))
    assert [(rank, size) for rank, size, _, _ in told] == [("0", "2"), ("1", "2")], printed[-2000:]
    assert told[0][2] != told[1][2], "both processes draw the same noise"
    assert told[0][3] == told[1][3], "the processes' weights differ: gradients were not shared"
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in state), "a single process could not load it"


@pytest.mark.parametrize("name", bundle_names())
def test_the_metadata_passes_verify_metadata(name: str, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    verify_metadata(meta_file=str(bundle_folder(name) / "configs" / "metadata.json"), filepath=str(schema))


def test_verify_metadata_refuses_metadata_that_lacks_a_field(tmp_path: Path) -> None:
    """Shows that the local schema is read at all."""
    schema, metadata = tmp_path / "schema.json", tmp_path / "metadata.json"
    schema.write_text(json.dumps(SCHEMA))
    content = json.loads((CONFIGS / "metadata.json").read_text())
    del content["network_data_format"]["outputs"]["pred"]["dtype"]
    metadata.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="dtype"):
        verify_metadata(meta_file=str(metadata), filepath=str(schema))


@pytest.mark.parametrize("config", ["train.yaml", "inference.yaml"])
def test_the_network_passes_verify_net_in_out(config: str) -> None:
    verify_net_in_out("network_def", meta_file=str(CONFIGS / "metadata.json"), config_file=str(CONFIGS / config), device="cpu", n=2)


def test_training_and_inference_build_the_same_network() -> None:
    """A checkpoint of one is loaded by the other."""
    train, inference = (ConfigParser.load_config_file(CONFIGS / name) for name in ("train.yaml", "inference.yaml"))
    assert train["network_def"] == inference["network_def"]
    assert train["spatial_size"] == inference["spatial_size"]
    assert train["network_transforms"] == inference["network_transforms"][1:]


def test_every_bundle_has_what_the_specification_asks_for() -> None:
    assert bundle_names() == ("fine_tuning", "local_augmentation")
    for name in bundle_names():
        folder = bundle_folder(name)
        for part in ("LICENSE", "docs/README.md", "configs/metadata.json", "configs/logging.conf"):
            assert (folder / part).stat().st_size > 0


def test_an_unknown_bundle_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="local_augmentation"):
        bundle_folder("local_augmentatoin")


def test_copying_a_bundle_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine"):
        copy_bundle("local_augmentation", tmp_path / "mine")


@pytest.fixture
def shipped_pictures(tmp_path: Path) -> Path:
    """A datalist of pictures that scikit-image ships, with labels by Otsu's threshold: two sizes, one of them not square."""
    pytest.importorskip("skimage")
    import numpy as np
    from PIL import Image
    from skimage import data, filters

    entries = []
    for name in ("coins", "microaneurysms"):
        picture = getattr(data, name)()
        label = (picture > filters.threshold_otsu(picture)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        Image.fromarray(label).save(tmp_path / f"{name}_label.png")
        entries.append({"image": f"{name}.png", "label": f"{name}_label.png", "finding": "coin"})
    file = tmp_path / "datalist.json"
    file.write_text(json.dumps({"modality": "fundus", "anatomy": "retina", "training": entries, "validation": entries}))
    return file


@pytest.mark.slow
def test_the_documented_command_runs_on_pictures_that_a_dependency_ships(shipped_pictures: Path, tmp_path: Path) -> None:
    folder = copy_bundle("local_augmentation", tmp_path / "bundle")
    run_bundle([], folder, ["train.yaml"], overrides_for(folder, shipped_pictures, epochs=1))
    assert (folder / "models" / "model.pt").is_file()
