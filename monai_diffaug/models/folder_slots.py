"""Parts of a diffusers folder: the class names that each may have, and the check of their config files before anything is built.

A config names the class that is built from it. Here a name is looked up in the list of its slot; it is never imported by its text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_diffaug.errors import one_line

__all__ = ["SCHEDULERS", "build_scheduler_of", "check_slot"]

SCHEDULERS = frozenset(
    f"{name}Scheduler"
    for name in (
        "CosineDPMSolverMultistep",
        "DDIM",
        "DDIMParallel",
        "DDPM",
        "DDPMParallel",
        "DEISMultistep",
        "DPMSolverMultistep",
        "DPMSolverSDE",
        "DPMSolverSinglestep",
        "EDMDPMSolverMultistep",
        "EDMEuler",
        "EulerAncestralDiscrete",
        "EulerDiscrete",
        "FlowMatchEulerDiscrete",  # refused at use, with a message of its kind
        "HeunDiscrete",
        "IPNDM",
        "KDPM2AncestralDiscrete",
        "KDPM2Discrete",
        "LCM",
        "LMSDiscrete",
        "PNDM",
        "SASolver",
        "TCD",
        "UniPCMultistep",
    )
)
CLASSES: Mapping[str, frozenset[str]] = {
    "vae": frozenset({"AutoencoderKL", "AutoencoderTiny"}),
    "unet": frozenset({"UNet2DConditionModel"}),
    "text_encoder": frozenset({"CLIPTextModel"}),
    "tokenizer": frozenset({"CLIPTokenizer", "CLIPTokenizerFast"}),
    "scheduler": SCHEDULERS,
}
CLASS_KEYS = {"text_encoder": "architectures", "tokenizer": "tokenizer_class"}  # "_class_name" of the others
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation")  # may name a repository of kernels, whose code would be fetched and run
ATTENTIONS = (None, "eager", "sdpa")


def check_slot(slot: str, file: Path) -> dict[str, Any]:
    """The content of the config of a part; a config without a class name is accepted.

    Args:
        slot: "vae", "unet", "text_encoder", "tokenizer" or "scheduler".
        file: its config.

    Raises:
        ValueError: no JSON object, a class that does not belong into the slot, or attention kernels from elsewhere.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON ({error}); fetch the folder again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, it holds a {type(content).__name__}; fetch the folder again")
    name = content.get(CLASS_KEYS.get(slot, "_class_name"))
    names = name if isinstance(name, list) else [name]
    for each in names:
        if each is not None and not (isinstance(each, str) and each in CLASSES[slot]):
            raise ValueError(f"{file} names {each!r}, which is no {slot.replace('_', ' ')} here; use {', '.join(sorted(CLASSES[slot]))}")
    for key in ATTENTION_KEYS:
        if content.get(key) not in ATTENTIONS:
            raise ValueError(f"{file}: {key} {content[key]!r} is not used, as it may fetch and run code; remove it, or write sdpa")
    return content


def build_scheduler_of(file: Path) -> Any:
    """The scheduler of a ``scheduler_config.json``; DDIM when it names no class.

    Raises:
        ValueError: as for ``check_slot``, a scheduler that this version of diffusers does not have, or wrong values.
    """
    import diffusers

    config = check_slot("scheduler", file)
    name = config.get("_class_name", "DDIMScheduler")
    scheduler_class = getattr(diffusers, name, None)
    if scheduler_class is None:
        raise ValueError(f"{file}: this version of diffusers ({diffusers.__version__}) has no scheduler {name!r}")
    try:
        return scheduler_class.from_config(config)
    except Exception as error:  # wrong values raise errors of many types
        raise ValueError(f"{file} is no configuration of a {name} ({type(error).__name__}: {one_line(error)})") from error
