"""A small CLIP text encoder, and a byte-pair tokenizer for the package's own vocabulary."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from monai_diffaug.prompts import NORMAL, VOCABULARIES, compose_prompt

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

__all__ = ["build_text_encoder", "build_tokenizer"]

MAX_TOKENS = 40
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def _corpus() -> list[str]:
    texts = [f"synthetic image, no text, blank, blurred, artefact, {NORMAL}"]
    for vocabulary in VOCABULARIES.values():
        words = list(itertools.chain.from_iterable(vocabulary.attributes.values()))
        for anatomy, findings in vocabulary.findings.items():
            texts += [compose_prompt(vocabulary.modality, anatomy, finding, words) for finding in (*findings, NORMAL)]
    return texts


@lru_cache(maxsize=1)
def _merges() -> tuple[tuple[str, str], ...]:
    """Byte-pair merges (Sennrich et al., ACL 2016) of the corpus, until each of its words is one token.

    The trainer of ``tokenizers`` breaks ties in another order at each run; a resumed training needs the same tokenizer again.
    """
    counts = Counter(word for text in _corpus() for word in re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower()))
    pieces = {word: [*word[:-1], word[-1] + WORD_END] for word in counts}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in counts.items():
            for pair in itertools.pairwise(pieces[word]):
                pairs[pair] += count
        if not pairs:
            return tuple(merges)
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = {word: _merged(parts, best) for word, parts in pieces.items()}


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == pair:
            result[-1] += part
        else:
            result.append(part)
    return result


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write ``vocab.json`` and ``merges.txt`` to ``folder`` and load them as CLIPTokenizer; the same at each call."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    symbols = [*alphabet, *(symbol + WORD_END for symbol in alphabet), *("".join(pair) for pair in _merges()), START, END]
    vocabulary = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, _merges())]) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", **special, "model_max_length": MAX_TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 128, fresh weights, for the tokenizer's vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
