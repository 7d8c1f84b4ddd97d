"""Copy a trained model into the package, its weights in half precision.

``python -m monai_diffaug.training.embedded.embed runs/inpaint``
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from monai_diffaug.models.portable_folder import make_portable
from monai_diffaug.models.registry import tiny_folder
from monai_diffaug.training.loop import TRAINING_FOLDER

__all__ = ["embed"]

PARTS = {"inpaint": "inpainter", "vae": "inpainter/vae"}  # recipe -> folder, where the names differ
OF_THE_INPAINTER = "vae"  # a validator is written with its VAE; the embedded one takes the embedded inpainter's


def embed(source: Path, target: Path) -> int:
    """Copy the model that a recipe wrote, float weights as float16, in place of ``target``; returns the bytes written.

    Raises:
        FileNotFoundError: there are no weights in the folder.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    left_out = {TRAINING_FOLDER, "adapter"} | ({OF_THE_INPAINTER} if target.name != "inpainter" else set())
    files = [f for f in sorted(source.rglob("*")) if f.is_file() and f.relative_to(source).parts[0] not in left_out]
    if not any(file.suffix == ".safetensors" for file in files):
        raise FileNotFoundError(f"{source} holds no weights; give the folder that 'monai-diffaug train' wrote")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    part.chmod(0o755)  # mkdtemp makes it private
    for file in files:
        copy = part / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix != ".safetensors":
            shutil.copyfile(file, copy)
            continue
        with safe_open(file, "pt") as weights:
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
            save_file({n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}, copy, metadata=weights.metadata())
        copy.chmod(0o644)  # safetensors makes it private
    make_portable(part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder that 'monai-diffaug train' wrote")
    source = parser.parse_args().source
    recipe = json.loads((source / TRAINING_FOLDER / "settings.json").read_text(encoding="utf-8"))["recipe"]
    embed(source, tiny_folder(PARTS.get(recipe, recipe.replace("-", "_"))))


if __name__ == "__main__":
    main()
