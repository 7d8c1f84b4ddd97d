from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file, save_file

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.portable_folder import make_portable
from monai_diffaug.models.registry import ModelSpec, tiny_folder

READS_NEWEST = Version(transformers.__version__) >= Version("5.6")
PROMPT = "MRI of brain, glioma, irregular"


@pytest.fixture
def newest(tmp_path: Path) -> Path:
    """The embedded inpainter in half precision, as the newest transformers writes it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("inpainter"), folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    weights = folder / "text_encoder/model.safetensors"
    save_file({name.removeprefix("text_model."): tensor.half() for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    config = json.loads((folder / "text_encoder/config.json").read_text())
    (folder / "text_encoder/config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    return folder


def states(folder: Path) -> torch.Tensor:
    return load_inpainter(ModelSpec("inpainter", str(folder)), torch.device("cpu")).encode_text([PROMPT])


def test_the_text_states_stay_the_same(newest) -> None:
    before = states(newest) if READS_NEWEST else None
    if before is None:  # older versions left the text encoder random, without an error
        with pytest.raises(ValueError, match="36 weights are missing"):
            states(newest)
    make_portable(newest)
    after = states(newest)
    assert before is None or torch.equal(after, before)
    names = list(load_file(newest / "text_encoder/model.safetensors"))
    assert names and all(name.startswith("text_model.") for name in names)
    written = {file: file.stat().st_mtime_ns for file in newest.rglob("*") if file.is_file()}
    make_portable(newest)
    assert {file: file.stat().st_mtime_ns for file in newest.rglob("*") if file.is_file()} == written


def test_vocabulary_and_merges_make_the_same_tokens_without_the_newer_file(newest) -> None:
    from transformers import CLIPTokenizer

    before = transformers.PreTrainedTokenizerFast.from_pretrained(newest / "tokenizer")(PROMPT).input_ids  # reads tokenizer.json alone
    make_portable(newest)
    (newest / "tokenizer/tokenizer.json").unlink()
    assert CLIPTokenizer.from_pretrained(newest / "tokenizer")(PROMPT).input_ids == before


def test_plain_diffusers_runs_the_folder_without_a_dtype(newest) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    make_portable(newest)
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(newest)
    pipeline.set_progress_bar_config(disable=True)
    assert {next(getattr(pipeline, part).parameters()).dtype for part in ("vae", "unet", "text_encoder")} == {torch.float32}
    image, mask = Image.new("RGB", (128, 128), "grey"), Image.fromarray(np.pad(np.full((64, 64), 255, np.uint8), 32))
    picture = pipeline(PROMPT, image, mask, height=128, width=128, num_inference_steps=1, output_type="np").images[0]
    assert np.isfinite(picture).all() and picture[40:90, 40:90].std() > 0
