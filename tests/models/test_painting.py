from __future__ import annotations

import shutil

import pytest
import torch

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.painting import PLAIN, Painting, painting_for, read_paintings, write_paintings
from monai_diffaug.models.registry import ModelSpec

TABLE = {"ultrasound": Painting(1.0, noise_gain=0.2), "ct": Painting(2.0, (0, 0.5), acquisition=True), "default": Painting(1.5)}


def test_the_table_of_a_folder_is_loaded_with_its_model(tmp_path, random_inpainter):
    assert load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu")).paintings == {}
    shutil.copytree(random_inpainter, tmp_path / "model")
    write_paintings(tmp_path / "model", TABLE)
    assert load_inpainter(ModelSpec("inpainter", str(tmp_path / "model")), torch.device("cpu")).paintings == TABLE


@pytest.mark.parametrize(
    ("prompt", "modality"),
    [
        ("ultrasound of breast, benign mass", "ultrasound"),
        ("CT of liver", "ct"),
        ("ct", "ct"),
        ("ctenoid scales", "default"),
        ("a breast in ultrasound", "default"),
        ("", "default"),
    ],
)
def test_the_modality_that_a_prompt_begins_with_decides(prompt, modality):
    assert painting_for(TABLE, prompt) == TABLE[modality]
    assert painting_for({}, prompt) == PLAIN


@pytest.mark.parametrize(
    "content", ["[1]", "{", '{"ct": {"guidance": 2}}', '{"ct": {"guidance_scale": -1}}', '{"ct": {"noise_gain": "a"}}']
)
def test_a_damaged_table_is_refused_with_its_name(tmp_path, content):
    (tmp_path / "painting.json").write_text(content)
    with pytest.raises(ValueError, match="painting.json must map modalities to"):
        read_paintings(tmp_path)


def test_nothing_is_written_without_a_table(tmp_path):
    write_paintings(tmp_path, {})
    assert not any(tmp_path.iterdir())
