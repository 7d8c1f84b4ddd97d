"""Low-rank adapters (peft) in the attention of a network, and their merging into plain weights for the export."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from torch import nn

from monai_diffaug.errors import MissingExtraError

__all__ = ["CLIP_ATTENTION", "SAM_ATTENTION", "UNET_ATTENTION", "add_adapters", "merged"]

UNET_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
SAM_ATTENTION = ("attn.qkv", "attn.proj")


def add_adapters(network: nn.Module, targets: Sequence[str], rank: int) -> Any:
    """Add LoRA layers (Hu et al., ICLR 2022; scale 1) to a frozen network in place; only they require a gradient.

    Args:
        network: any module.
        targets: endings of the names of the linear layers that get an adapter.
        rank: of the adapters.

    Returns:
        The peft configuration.

    Raises:
        MissingExtraError: peft is not installed.
        ValueError: no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError(f"--lora needs peft ({error}): pip install monai_diffaug[train]") from error

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights="gaussian")
    inject_adapter_in_model(config, network)
    return config


def merged(network: nn.Module) -> Any:
    """A copy of the network with its adapters added to the weights: the architecture it had before ``add_adapters``."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = deepcopy(network)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            parent, _, attribute = name.rpartition(".")
            setattr(plain.get_submodule(parent), attribute, layer.get_base_layer())
    for extra in ("peft_config", "_hf_peft_config_loaded"):
        if extra in vars(plain):
            delattr(plain, extra)
    return plain.requires_grad_(False)
