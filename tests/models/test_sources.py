"""Model sources: where the files of a source string are, and whether the weights are those of the network."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models import sources
from monai_diffaug.models.controlnet import load_controlnet
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.latent_screen import load_latent_screen
from monai_diffaug.models.medsam import load_medsam
from monai_diffaug.models.registry import ModelSpec, tiny_folder
from monai_diffaug.models.semantic_controller import load_semantic_controller
from monai_diffaug.models.sources import (
    check_model_source,
    load_pretrained,
    load_state,
    load_weights,
    locate,
    read_config,
    read_weights,
    save_network,
)
from monai_diffaug.models.validator import load_validator

KINDS = ("inpainter", "medsam", "controlnet", "validator", "semantic_controller", "latent_screen")
LOADERS: dict[str, Callable[..., Any]] = {
    "inpainter": load_inpainter,
    "medsam": load_medsam,
    "controlnet": load_controlnet,
    "validator": load_validator,
    "semantic_controller": load_semantic_controller,
    "latent_screen": load_latent_screen,
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """A hub whose repositories have the files of ``tmp_path``; the list holds the requests."""
    requests: list[dict[str, Any]] = []

    def download(repository: str, **options: Any) -> str:
        requests.append({"repository": repository, **options})
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return requests


def test_tiny_a_file_and_a_folder_are_found_without_the_hub(hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.pth"
    file.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("medsam", "tiny", "") == tiny_folder("medsam")
    assert locate("medsam", str(file), "") == file == locate("medsam", "~/weights.pth", "")
    assert locate("medsam", str(tmp_path), "") == tmp_path
    assert hub == []


def test_a_hub_id_is_requested_with_its_revision_and_patterns(hub: list[Any], tmp_path: Path) -> None:
    (tmp_path / "b.bin").touch()
    assert locate("controlnet", "org/name@v1.2", "", (("config.json", "a.bin"), ("config.json", "b.bin"), ("c.bin",))) == tmp_path
    assert hub == [
        {"repository": "org/name", "revision": "v1.2", "allow_patterns": ["config.json", name], "local_files_only": False}
        for name in ("a.bin", "b.bin")
    ]
    locate("controlnet", "org/name", "")
    assert hub[-1]["revision"] is None


def test_without_network_the_local_cache_is_used(hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "on")
    locate("controlnet", "org/name", "")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    locate("controlnet", "org/name", "")
    assert [request["local_files_only"] for request in hub] == [True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_hub_model_that_is_not_in_the_cache_names_the_command_for_every_kind(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = kind.replace("_", " ")
    with pytest.raises(ModelSourceError, match=rf"^{name} 'org/name@abc' .*HF_HUB_OFFLINE .*hf download org/name --revision abc$"):
        LOADERS[kind](ModelSpec(kind, "org/name@abc"), torch.device("cpu"))


def test_the_error_of_the_hub_is_named(hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelSourceError, match=r"the hub did not deliver it \(ConnectionError\).*hf download org/name$"):
        locate("validator", "org/name", "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["nowhere", "./no/folder", "/no/such/file.pth", "folder/weights.safetensors", "a/b/c"])
def test_a_source_that_cannot_be_a_model_is_refused_for_every_kind_without_a_request(kind: str, source: str, hub: list[Any]) -> None:
    with pytest.raises(ModelSourceError, match=f"unknown {kind.replace('_', ' ')} source '{source}'.*no hub id"):
        LOADERS[kind](ModelSpec(kind, source), torch.device("cpu"))
    with pytest.raises(ModelSourceError, match="use 'tiny'"):
        check_model_source(kind, source)
    assert hub == []


def test_a_missing_embedded_model_is_named_with_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "tiny_folder", lambda kind: tmp_path / "none" / kind)
    with pytest.raises(ModelSourceError, match=r"the embedded latent screen is not at .*none/latent_screen; reinstall monai_diffaug"):
        check_model_source("latent_screen", "tiny")


def test_a_validator_of_the_hub_is_loaded_like_its_folder(hub: list[Any], tmp_path: Path) -> None:
    shutil.copytree(tiny_folder("validator"), tmp_path, dirs_exist_ok=True)
    local, remote = (load_validator(ModelSpec("validator", source)) for source in ("tiny", "org/name"))
    expected = local.segmenter.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(expected[name], value) for name, value in remote.segmenter.state_dict().items())  # type: ignore[attr-defined]
    assert [request["allow_patterns"][-1] for request in hub] == ["model.safetensors"]


def network(width: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 1))


def test_a_saved_network_is_loaded_with_its_values_in_half_precision(tmp_path: Path) -> None:
    original, loaded = network(), network()
    nn.init.zeros_(loaded[0].weight)
    size = save_network({"width": 2}, original, tmp_path / "new")
    assert size == sum(file.stat().st_size for file in (tmp_path / "new").iterdir())
    assert read_config(tmp_path / "new", dict, "a network") == {"width": 2}
    load_weights(loaded, tmp_path / "new" / "model.safetensors", "a network")
    assert torch.equal(loaded[0].weight, original[0].weight.half().float()) and loaded[0].weight.dtype == torch.float32


@pytest.mark.parametrize("nested", [None, "model", "state_dict", "network"])
def test_weights_are_read_from_a_pickle_and_from_a_checkpoint_of_a_training_run(tmp_path: Path, nested: str | None) -> None:
    weights = network().state_dict()
    torch.save(weights if nested is None else {nested: weights, "epoch": 3}, tmp_path / "a.pt")
    assert read_weights(tmp_path / "a.pt", "a network").keys() == weights.keys()


def test_a_file_that_is_no_checkpoint_is_refused_and_its_code_is_not_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "trace",)

    (tmp_path / "code.pt").write_bytes(pickle.dumps(Code()))
    (tmp_path / "short.safetensors").write_bytes(b"short")
    (tmp_path / "short.pt").write_bytes(b"short")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    for name in ("code.pt", "short.safetensors", "short.pt"):
        with pytest.raises(ValueError, match=rf"{name} is no readable checkpoint .*; buy a new one"):
            read_weights(tmp_path / name, "a network", "buy a new one")
    with pytest.raises(ValueError, match="holds dict, expected the state dict of a network"):
        read_weights(tmp_path / "epoch.pt", "a network")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("1.bias"), r"1 weights are missing \(1\.bias\)"),
        (
            lambda weights: weights.update({f"more.{i}": torch.zeros(1) for i in range(5)}),
            r"5 weights are left over \(more\.0, more\.1, more\.2",
        ),
        (lambda weights: weights.update({"0.weight": torch.zeros(9, 3)}), "size mismatch for 0.weight"),
    ],
)
def test_every_weight_must_be_there_and_be_used(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    weights = network().state_dict()
    change(weights)
    with pytest.raises(ValueError, match=f"a.pt does not fit a network: .*{message}"):
        load_state(network(), weights, "a.pt", "a network")


@pytest.mark.parametrize("fault", ["missing", "left over"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_of_an_inpainter_without_all_its_weights_is_refused(random_inpainter: str, tmp_path: Path, part: str, fault: str) -> None:
    """diffusers and transformers only warn and go on with random weights."""
    folder = tmp_path / "model"
    shutil.copytree(random_inpainter, folder)
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    if fault == "missing":
        del weights[sorted(weights)[0]]
    else:
        weights["extra.weight"] = torch.zeros(1)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{part} does not fit the \w+ of its config.json: 1 weights are {fault}"):
        load_inpainter(ModelSpec("inpainter", str(folder)), torch.device("cpu"))


def test_a_network_of_another_size_than_its_config_is_refused(random_inpainter: str, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    shutil.copytree(Path(random_inpainter, "vae"), tmp_path / "vae")
    config = (tmp_path / "vae/config.json").read_text()
    (tmp_path / "vae/config.json").write_text(config.replace('"latent_channels": 4', '"latent_channels": 8'))
    with pytest.raises(ValueError, match=r"the AutoencoderKL under .*vae cannot be loaded"):
        load_pretrained(AutoencoderKL, tmp_path / "vae")


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"wrong": 1}'])
def test_a_config_that_builds_nothing_is_refused(tmp_path: Path, text: str) -> None:
    def build(values: dict[str, Any]) -> int:
        return int(values["width"])

    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is no configuration of a network"):
        read_config(tmp_path, build, "a network")


@pytest.mark.slow  # imports torch and MONAI in another process
def test_no_module_below_the_transforms_imports_an_optional_library() -> None:
    """MONAI imports some of the libraries where they are installed, so they are made unimportable first."""
    code = """
import importlib, pkgutil, sys
for name in ("diffusers", "transformers", "segment_anything", "huggingface_hub", "safetensors", "skimage"): sys.modules[name] = None
for folder in ("geometry", "files", "masks", "sampling", "models", "edit", "data", "transforms"):
    package = importlib.import_module(f"monai_diffaug.{folder}")
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
import torch
from monai_diffaug.models.medsam_resize import resize_cubic
resize_cubic(torch.rand(1, 1, 9, 9), 8)
print(len([name for name in sys.modules if name.startswith("monai_diffaug.")]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 60
