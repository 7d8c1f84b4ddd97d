"""Model sources: "tiny" (embedded), a local file or folder, or a hub id ``org/name@revision``.

Every loader turns its source string into files here, and checks here that the weights are those of its network.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from packaging.version import Version
from torch import Tensor, nn

from monai_diffaug.errors import ModelSourceError, one_line
from monai_diffaug.models.progress_bars import without_progress_bars
from monai_diffaug.models.registry import tiny_folder

__all__ = ["check_keys", "check_model_source", "load_pretrained", "load_state", "load_weights", "locate"]
__all__ += ["load_tokenizer", "read_config", "read_weights", "require_files", "save_network"]

T = TypeVar("T")
NETWORK_FILES = CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"  # of a network as ``save_network`` writes it
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
WEIGHT_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
NESTED = ("model", "state_dict", "network")  # where checkpoints of training runs keep the weights
SHOWN_KEYS = 3
FULL_REPORT = Version("0.36")  # of diffusers; 0.32 does not report unused weights when it saves memory


def check_model_source(kind: str, source: str, advice: str = "use 'tiny'") -> None:
    """Reject a source that cannot be a model, before anything is loaded.

    Args:
        kind: of the model, which is also the name of its embedded folder, e.g. "latent_screen".
        source: "tiny", a file, a folder, or a hub id "org/name" or "org/name@revision".
        advice: end of the error message: what to do instead.

    Raises:
        ModelSourceError: neither "tiny", an existing file or folder, nor a hub id.

    >>> check_model_source("inpainter", "tiny")
    >>> check_model_source("inpainter", "org/name@main")
    """
    name = kind.replace("_", " ")
    if source == "tiny" and not tiny_folder(kind).is_dir():
        raise ModelSourceError(f"the embedded {name} is not at {tiny_folder(kind)}; reinstall monai_diffaug, or {advice}")
    is_hub_id = HUB_ID.fullmatch(source) is not None and not source.endswith(WEIGHT_SUFFIXES)
    if source != "tiny" and not is_hub_id and not Path(source).expanduser().exists():
        raise ModelSourceError(
            f"unknown {name} source {source!r}: no such file or folder, and no hub id of the form org/name or org/name@revision; {advice}"
        )


def locate(kind: str, source: str, advice: str, hub_files: Sequence[Sequence[str]] = (NETWORK_FILES,)) -> Path:
    """Local file or folder of a source. A hub model is taken from the local cache or downloaded, unless HF_HUB_OFFLINE forbids it.

    Args:
        kind, source, advice: as in ``check_model_source``.
        hub_files: groups of file patterns, the preferred one first; the first group is taken whose last pattern matches a file.

    Raises:
        ModelSourceError: no model is there; the message names the place and the command that fetches it.
    """
    check_model_source(kind, source, advice)
    path = tiny_folder(kind) if source == "tiny" else Path(source).expanduser()
    return path if path.exists() else _hub_folder(kind, source, hub_files)


def require_files(folder: Path, names: Collection[str], advice: str) -> None:
    """Raise ModelSourceError with the name of the first file that the folder lacks."""
    for name in names:
        if not (folder / name).is_file():
            raise ModelSourceError(f"{folder / name} is missing; {advice}")


def read_config(folder: Path, build: Callable[[dict[str, Any]], T], network: str) -> T:
    """Build something from the values of ``config.json``; ``network`` is its name in messages, with an article.

    Raises:
        ValueError: no JSON, or values that ``build`` rejects.
    """
    try:
        return build(json.loads((folder / CONFIG_FILE).read_text()))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} is no configuration of {network}: {error!r}") from error


def read_weights(file: Path, network: str, fix: str = "copy or fetch it again") -> dict[str, Any]:
    """State dict of a ``.safetensors`` file, or of a pickle that holds nothing but tensors, also one level down in a checkpoint.

    Raises:
        ValueError: truncated, a pickle with code in it, or no state dict.
    """
    from safetensors.torch import load_file

    try:
        weights = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the readers raise errors of many types
        raise ValueError(
            f"{file} is no readable checkpoint of tensors ({file.stat().st_size} bytes): truncated, or a pickle with code in it, which is "
            f"never run; {fix}"
        ) from error
    if isinstance(weights, Mapping):
        weights = next((weights[name] for name in NESTED if isinstance(weights.get(name), Mapping)), weights)
    if not isinstance(weights, Mapping) or not any(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{file} holds {type(weights).__name__}, expected the state dict of {network}")
    return dict(weights)


def load_weights(module: nn.Module, file: Path, network: str) -> None:
    """Load the weights of a file into a module, see ``read_weights`` and ``load_state``."""
    load_state(module, read_weights(file, network), file, network)


def load_state(module: nn.Module, weights: Mapping[str, Any], place: object, network: str) -> None:
    """Load a state dict into a module, in the module's dtype, and check that every weight of both was used.

    ``place`` (where the weights come from) and ``network`` (its name with an article) appear in messages.

    Raises:
        ValueError: weights are missing, left over or of another shape.
    """
    try:
        result = module.load_state_dict(dict(weights), strict=False)
    except (RuntimeError, TypeError, AttributeError) as error:  # another shape, or a value that is no tensor
        raise ValueError(f"{place} does not fit {network}: {one_line(error)}") from error
    check_keys(result.missing_keys, result.unexpected_keys, place, network)


def check_keys(missing: Collection[str], left_over: Collection[str], place: object, network: str) -> None:
    """Raise ValueError when a load left weights of the network at random values, or weights of the file unused.

    >>> check_keys([], [], "model.safetensors", "a validator")
    >>> check_keys(["unet.bias"], [], "model.safetensors", "a validator")
    Traceback (most recent call last):
    ...
    ValueError: model.safetensors does not fit a validator: 1 weights are missing (unet.bias); use the weights of this configuration
    """
    faults = [
        f"{len(names)} weights are {fault} ({', '.join(sorted(names)[:SHOWN_KEYS])}{', ...' if len(names) > SHOWN_KEYS else ''})"
        for names, fault in ((missing, "missing"), (left_over, "left over"))
        if names
    ]
    if faults:
        raise ValueError(f"{place} does not fit {network}: {'; '.join(faults)}; use the weights of this configuration")


def load_pretrained(network_class: Any, folder: Path, **options: Any) -> Any:
    """Load a network of diffusers or transformers from a local folder; unlike there, a missing weight is an error, not a warning.

    Raises:
        ValueError: files that cannot be read, or weights that are missing, left over or of another shape.
    """
    name = network_class.__name__
    if network_class.__module__.startswith("diffusers."):
        import diffusers

        if Version(diffusers.__version__) < FULL_REPORT:
            options["low_cpu_mem_usage"] = False
    try:
        with without_progress_bars(), _without_reports():
            network, info = network_class.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    except Exception as error:  # wrong configs and damaged weights raise errors of many types
        raise ValueError(f"the {name} under {folder} cannot be loaded ({one_line(error)}); fetch the folder again") from error
    check_keys(info["missing_keys"], info["unexpected_keys"], folder, f"the {name} of its {CONFIG_FILE}")
    return network


@contextlib.contextmanager
def _without_reports() -> Iterator[None]:
    """Silence the tables and advice that both libraries print about a load; its faults are raised here, in one line."""
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def load_tokenizer(tokenizer_class: Any, folder: Path) -> Any:
    """Load a tokenizer of transformers from a local folder.

    Raises:
        ValueError: files that are missing, cannot be read, or are of another version of transformers.
    """
    try:
        return tokenizer_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # versions of transformers and tokenizers raise errors of many types, tokenizers' a bare Exception
        raise ValueError(
            f"the {tokenizer_class.__name__} under {folder} cannot be loaded ({one_line(error)}); fetch the folder again, or write it with "
            "vocab.json and merges.txt, which every version of transformers reads"
        ) from error


def save_network(config: Mapping[str, Any], module: nn.Module, folder: Path) -> int:
    """Write ``config.json`` and ``model.safetensors`` (float16); returns the bytes written."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(dict(config), indent=2) + "\n")
    weights = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in module.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE)
    return sum((folder / name).stat().st_size for name in (CONFIG_FILE, WEIGHTS_FILE))


def _hub_folder(kind: str, source: str, hub_files: Sequence[Sequence[str]]) -> Path:
    """Folder of a hub model in the local cache."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, _, revision = source.partition("@")
    offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    options: dict[str, Any] = {"revision": revision or None, "local_files_only": offline}
    try:
        for patterns in hub_files:
            folder = Path(snapshot_download(repository, allow_patterns=list(patterns), **options))
            if any(folder.glob(patterns[-1])):
                break
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        state = "HF_HUB_OFFLINE is set and it is not in the cache" if offline else f"the hub did not deliver it ({type(error).__name__})"
        command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
        raise ModelSourceError(
            f"{kind.replace('_', ' ')} {source!r} is no file or folder here, and {state}. On a machine with network run: {command}"
        ) from error
    return folder
