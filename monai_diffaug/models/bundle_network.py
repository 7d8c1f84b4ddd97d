"""The network of a MONAI Bundle: a segmenter somebody else has trained can be the judge of an edit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_diffaug.errors import ModelSourceError

__all__ = ["is_bundle", "load_bundle_network"]

METADATA = "configs/metadata.json"
CONFIGS = ("inference", "evaluate", "train")  # the first that defines the network is read
SUFFIXES = (".json", ".yaml", ".yml")
NETWORK = "network_def"  # the name that the Bundle specification gives it
WEIGHTS = "models/model.pt"
NESTED = ("model", "state_dict", "network")  # where checkpoints of training runs keep the weights


def is_bundle(folder: Path) -> bool:
    """The folder is laid out as a MONAI Bundle."""
    return (folder / METADATA).is_file()


def load_bundle_network(folder: Path) -> nn.Module:
    """The network that a Bundle's config defines, with the weights of ``models/model.pt``.

    Only ``network_def`` is built; transforms, inferers and data sets are not, so the network is shown what the caller gives it.
    A config runs code when it is read, as ``monai.bundle.load`` says too: take Bundles from sources that you trust. Weights are
    read with ``weights_only=True``.

    Args:
        folder: with ``configs/metadata.json``.

    Raises:
        ModelSourceError: no config defines ``network_def``, or the weights are not there.
        ValueError: the definition is no network, or the weights are not its.
    """
    network = _defined(folder)
    file = folder / WEIGHTS
    if not file.is_file():
        raise ModelSourceError(
            f"{file} is missing; train the Bundle or fetch its weights: python -m monai.bundle download {folder.name} "
            f"--bundle_dir {folder.parent}"
        )
    try:
        weights: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated archives and pickles with code raise errors of several kinds
        raise ValueError(f"{file} is no readable checkpoint ({str(error).strip().splitlines()[0]}); fetch it again") from error
    if isinstance(weights, Mapping):
        weights = next((weights[name] for name in NESTED if isinstance(weights.get(name), Mapping)), weights)
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} does not fit {NETWORK} of the Bundle ({str(error).strip().splitlines()[0]})") from error
    return network


def _defined(folder: Path) -> nn.Module:
    """``network_def`` of the first config that has it."""
    from monai.bundle.config_parser import ConfigParser

    for file in (folder / "configs" / f"{name}{suffix}" for name in CONFIGS for suffix in SUFFIXES):
        if not file.is_file():
            continue
        parser = ConfigParser()
        parser.read_config(str(file))
        if NETWORK not in parser:
            continue
        network: Any = parser.get_parsed_content(NETWORK)
        if not isinstance(network, nn.Module):
            raise ValueError(f"{NETWORK} in {file} is a {type(network).__name__}; a validator needs a torch module")
        return network
    raise ModelSourceError(f"no config of the Bundle {folder} defines {NETWORK!r} (looked for {', '.join(CONFIGS)} in json and yaml)")
