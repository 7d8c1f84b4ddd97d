"""The network of a MONAI Bundle: a published segmenter can validate edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.sources import load_weights, require_files

__all__ = ["is_bundle", "load_bundle_network"]

METADATA = "configs/metadata.json"
CONFIGS = ("inference", "evaluate", "train")  # the first one that defines the network is read
SUFFIXES = (".json", ".yaml", ".yml")
NETWORK = "network_def"  # its name in the Bundle specification
WEIGHTS = "models/model.pt"


def is_bundle(folder: Path) -> bool:
    """Whether the folder has the layout of a MONAI Bundle."""
    return (folder / METADATA).is_file()


def load_bundle_network(folder: Path, *, trust_config: bool = False) -> nn.Module:
    """Load the network that a Bundle's config defines, with the weights of ``models/model.pt``.

    Only ``network_def`` is built; transforms, inferers and data sets are not. The caller's input goes to the network as it is.
    Building it runs code of the config, as with ``monai.bundle.load``: expressions, imports, and any callable that ``_target_`` names.
    Weights are read with ``weights_only=True``.

    Args:
        folder: of the Bundle.
        trust_config: the caller trusts the source of the Bundle; without it nothing is run.

    Raises:
        ModelSourceError: no config defines ``network_def``, or the weights are missing.
        ValueError: ``trust_config`` is not set, the definition is not a network, or the weights do not fit it.
    """
    if not trust_config:
        raise ValueError(
            f"{folder} is a MONAI Bundle: to build its network, code that its config names is run. If you trust where it comes from, set "
            "options=Validator(trust_config=True) (in LatentValidated validator=Validator(...)), else give the network itself"
        )
    network = _defined(folder)
    require_files(
        folder,
        (WEIGHTS,),
        f"train the Bundle or fetch its weights: python -m monai.bundle download {folder.name} --bundle_dir {folder.parent}",
    )
    load_weights(network, folder / WEIGHTS, f"{NETWORK} of the Bundle")
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
