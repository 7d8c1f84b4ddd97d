from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.networks.nets import BasicUNet

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.bundle_network import is_bundle, load_bundle_network
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.models.validator import SegmenterValidator, load_validator
from monai_diffaug.sampling.seeding import slice_generators

NETWORK = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "features": [4, 4, 4, 4, 4, 4]}


def write_bundle(folder: Path, *, name: str = "train.yaml", nested: bool = False) -> BasicUNet:
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs/metadata.json").write_text("{}")
    config = {"dataset_dir": "/no/such/data", "network_def": {"_target_": "BasicUNet", **NETWORK}, "evaluator": "$1 / 0"}
    (folder / "configs" / name).write_text(json.dumps(config))  # JSON is YAML too
    network = BasicUNet(**NETWORK).eval()
    weights = network.state_dict()
    torch.save({"model": weights, "epoch": 3} if nested else weights, folder / "models/model.pt")
    return network


@pytest.mark.parametrize(("name", "nested"), [("inference.json", False), ("train.yaml", True)])
def test_the_network_of_a_bundle_validates_with_its_weights(tmp_path: Path, name: str, nested: bool) -> None:
    network = write_bundle(tmp_path / "seg", name=name, nested=nested)
    validator = load_validator(ModelSpec("validator", str(tmp_path / "seg"), trust_config=True))
    assert isinstance(validator, SegmenterValidator)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = 1 - network(images.mean(1, keepdim=True)).softmax(1)[:, :1]
    assert torch.allclose(validator.predict(images, slice_generators(0, [0, 1])), expected, atol=1e-6)


def test_the_bundle_of_this_package_defines_a_network() -> None:
    import monai_diffaug

    folder = Path(monai_diffaug.__file__).parent / "bundles/local_augmentation"
    assert is_bundle(folder)
    with pytest.raises(ModelSourceError, match=r"model\.pt is missing"):
        load_bundle_network(folder, trust_config=True)


def test_each_fault_of_a_bundle_has_its_error(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a")
    (tmp_path / "a/models/model.pt").write_bytes(b"short")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        load_bundle_network(tmp_path / "a", trust_config=True)
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "a/models/model.pt")
    with pytest.raises(ValueError, match="does not fit network_def"):
        load_bundle_network(tmp_path / "a", trust_config=True)
    (tmp_path / "a/configs/train.yaml").write_text(json.dumps({"network_def": 5}))
    with pytest.raises(ValueError, match="is a int"):
        load_bundle_network(tmp_path / "a", trust_config=True)
    (tmp_path / "a/configs/train.yaml").write_text("{}")
    with pytest.raises(ModelSourceError, match="no config of the Bundle"):
        load_bundle_network(tmp_path / "a", trust_config=True)
    assert not is_bundle(tmp_path)
