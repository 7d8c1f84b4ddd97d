"""Copy a trained inpainter into the package in half precision.

``python -m monai_diffaug.training.embedded.embed --inpainter runs/inpaint/inpainter``
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch

from monai_diffaug.models.registry import tiny_folder

__all__ = ["embed_inpainter", "write_embedded"]


def embed_inpainter(source: Path, target: Path) -> int:
    """Write ``source`` (a diffusers folder) to ``target`` as float16 safetensors; returns the bytes written."""
    from diffusers import StableDiffusionInpaintPipeline

    pipeline = StableDiffusionInpaintPipeline.from_pretrained(str(source), torch_dtype=torch.float16, local_files_only=True)
    return write_embedded(pipeline, target)


def write_embedded(model: Any, target: Path) -> int:
    """Write a diffusers model or pipeline beside ``target``, then put it in its place; returns the bytes written."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part, safe_serialization=True)
    if target.exists():
        shutil.rmtree(target)
    part.rename(target)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inpainter", type=Path, default=Path("runs/inpaint/inpainter"))
    args = parser.parse_args()
    embed_inpainter(args.inpainter, tiny_folder("inpainter"))


if __name__ == "__main__":
    main()
