"""Make a diffusers folder readable by every version of transformers that this package allows, and by diffusers without a dtype.

Versions disagree on three things that they write. From 5.6 on, the text encoder's keys lack the prefix ``text_model.``, which older
versions need and all versions read. From 5.0 on, the tokenizer is one ``tokenizer.json``; version 4 needs ``vocab.json`` and
``merges.txt``. From 5.0 on, a text encoder that is stored in half precision is loaded in half precision, unless its config says otherwise,
while diffusers loads the UNet in float32, and the two do not fit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["make_portable"]

PREFIX = "text_model."
OUTSIDE = ("text_projection.", "logit_scale")  # weights of CLIP that are not of its text tower
DTYPE_KEYS = ("dtype", "torch_dtype")
VERSION_HEADER = "#version: 0.2"


def make_portable(folder: Path) -> None:
    """Rewrite the text encoder and the tokenizer of a diffusers folder in place; parts that are portable already stay as they are.

    Args:
        folder: as ``DiffusionPipeline.save_pretrained`` writes it; missing parts are passed over.
    """
    weights = folder / "text_encoder/model.safetensors"
    if weights.is_file():
        _add_prefix(weights)
        _load_as_float32(folder / "text_encoder/config.json")
    tokenizer = folder / "tokenizer/tokenizer.json"
    if tokenizer.is_file() and not tokenizer.with_name("vocab.json").is_file():
        _write_vocabulary(tokenizer)


def _add_prefix(file: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(file, "pt") as content:
        metadata = content.metadata()
        names = list(content.keys())
    if any(name.startswith(PREFIX) for name in names):
        return
    tensors = {name if name.startswith(OUTSIDE) else PREFIX + name: tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata=metadata or {"format": "pt"})


def _load_as_float32(file: Path) -> None:
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    portable = {name: value for name, value in config.items() if name not in DTYPE_KEYS} | {"dtype": "float32"}
    if portable != config:
        file.write_text(json.dumps(portable, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_vocabulary(file: Path) -> None:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    # pairs are lists in newer files, one text in older ones
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    file.with_name("vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    file.with_name("merges.txt").write_text("\n".join([VERSION_HEADER, *merges]) + "\n", encoding="utf-8")
    added = {token["content"]: token["id"] for token in content.get("added_tokens", ()) if token["content"] not in vocabulary}
    if added:
        file.with_name("added_tokens.json").write_text(json.dumps(added, ensure_ascii=False), encoding="utf-8")
