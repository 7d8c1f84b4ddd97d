"""A small CLIP text encoder and a BPE tokenizer trained on the package's own vocabulary."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from monai_diffaug.prompts import NORMAL, VOCABULARIES, compose_prompt

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

__all__ = ["build_text_encoder", "build_tokenizer"]

VOCABULARY_SIZE = 1400
MAX_TOKENS = 40
START, END = "<|startoftext|>", "<|endoftext|>"


def _corpus() -> list[str]:
    texts = [f"synthetic image, no text, blank, blurred, artefact, {NORMAL}"]
    for vocabulary in VOCABULARIES.values():
        words = list(itertools.chain.from_iterable(vocabulary.attributes.values()))
        for anatomy, findings in vocabulary.findings.items():
            texts += [compose_prompt(vocabulary.modality, anatomy, finding, words) for finding in (*findings, NORMAL)]
    return texts


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Train the byte-pair merges, write ``vocab.json`` and ``merges.txt`` to ``folder`` and load them as CLIPTokenizer."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, initial_alphabet=alphabet, end_of_word_suffix="</w>", special_tokens=[], show_progress=False
    )
    bpe.train_from_iterator(_corpus(), trainer)
    vocabulary: dict[str, int] = json.loads(bpe.to_str())["model"]["vocab"]
    merges = json.loads(bpe.to_str())["model"]["merges"]
    for symbol in sorted(alphabet):
        vocabulary.setdefault(f"{symbol}</w>", len(vocabulary))
    for token in (START, END):
        vocabulary.setdefault(token, len(vocabulary))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, sort_keys=False))
    lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "bos_token": START,
                "eos_token": END,
                "unk_token": END,
                "pad_token": END,
                "model_max_length": MAX_TOKENS,
            },
            indent=2,
        )
    )
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
