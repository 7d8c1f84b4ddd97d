from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.prompts import VOCABULARIES
from monai_diffaug.training.embedded.text_encoder import build_text_encoder, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_each_word_of_the_vocabularies_is_one_token(tokenizer) -> None:
    findings = [f for v in VOCABULARIES.values() for group in v.findings.values() for f in group]
    attributes = [word for v in VOCABULARIES.values() for axis in v.attributes.values() for word in axis]
    words = {word for text in (*findings, *attributes) for word in re.findall("[a-z]+", text.lower())}
    assert len(words) > 100
    assert not [word for word in words if len(tokenizer(word).input_ids) != 3]  # start, word, end


def test_unknown_words_are_spelled_and_come_back(tokenizer) -> None:
    text = "Xylophone 7, na\u00efve; adenoma-like"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


@pytest.mark.slow
def test_the_tokenizer_is_the_same_in_every_process(tokenizer, tmp_path) -> None:
    """A resumed training uses the embeddings of the first process; the trainer of ``tokenizers`` numbers the tokens at random."""
    from transformers import CLIPTokenizer

    module = "monai_diffaug.training.embedded.text_encoder"
    script = f"from pathlib import Path; from {module} import *; build_tokenizer(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    other = CLIPTokenizer.from_pretrained(tmp_path)
    assert other.get_vocab() == tokenizer.get_vocab()
    assert other("consolidation, xylophone").input_ids == tokenizer("consolidation, xylophone").input_ids


def test_the_text_encoder_has_the_names_and_shapes_of_the_embedded_one(tokenizer) -> None:
    shipped = load_inpainter(ModelSpec("inpainter"), torch.device("cpu")).text_encoder.state_dict()
    fresh = build_text_encoder(tokenizer).state_dict()
    assert {name: value.shape for name, value in fresh.items()} == {name: value.shape for name, value in shipped.items()}
