"""The demonstration: real images that ship inside nilearn and scikit-image, edited by the embedded models."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.errors import MissingExtraError
from monai_diffaug.files.image_file import read_picture, write_picture
from monai_diffaug.files.picture import Picture
from monai_diffaug.files.whole_file import whole_file

__all__ = ["CASES", "DemoRow", "run_demo", "table_of"]

NILEARN_T1 = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
SKIMAGE_RETINA = "data/retina.jpg"

# MNI millimetres (R, A, S): the corona radiata of the right hemisphere; 13 axial slices of 1 mm
GLIOMA_CENTRE_MM = (32.0, -20.0, 31.0)
GLIOMA_RADII_MM = (11.0, 17.0, 6.5)
GLIOMA_LOBES = ((3, 1.5, 0.0, 0.16), (5, -2.0, 1.0, 0.09))  # around the axis, along it, phase in radians, depth as a share of the radius
GLIOMA_PROMPT = "MRI of brain, glioma, large, irregular, hypointense"
GLIOMA_OPTIONS = {"noise_rho": 1.0}  # all slices share their noise

# the photograph has 1411 x 1411 pixels; 512 is about the resolution of the discs that the embedded models were trained on
RETINA_PX = 512
CUP_CENTRE_XY, CUP_RADII_PX = (94.0, 234.0), (20.0, 28.0)  # measured in the picture at 512 x 512; the large vessels stay outside
CUP_PROMPT = "fundus photograph of retina, enlarged optic cup"
CUP_OPTIONS = {"strength": 0.6}  # the cup stays at its place and grows


@dataclass(frozen=True)
class DemoRow:
    """One edit of the demonstration."""

    case: str
    local_ssim: float
    changed_outside: int
    score: float
    seconds: float


def _installed_file(package: str, file: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"the demo reads an image from {package}, which is not installed: pip install monai_diffaug[demo]")
    return Path(spec.submodule_search_locations[0]) / file


def glioma_mask(image: Picture) -> NDArray[np.uint8]:
    """A lobed ellipsoid (1, H, W, D) in the white matter."""
    if image.affine is None:
        raise ValueError("the brain has no affine")
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in image.shape), indexing="ij"), axis=-1)
    world_mm = grid @ image.affine[:3, :3].T + image.affine[:3, 3]
    right, front, up = np.moveaxis((world_mm - GLIOMA_CENTRE_MM) / GLIOMA_RADII_MM, -1, 0)
    angle = np.arctan2(front, right)
    reach = 1 + sum(depth * np.sin(around * angle + along * up + phase) for around, along, phase, depth in GLIOMA_LOBES)
    inside = (np.hypot(right, front) <= reach * np.sqrt(np.clip(1 - up**2, 0, None))) & (np.abs(up) < 1)
    mask: NDArray[np.uint8] = inside.astype(np.uint8)[None]
    return mask


def cup_mask(image: Picture) -> NDArray[np.uint8]:
    """An ellipse (1, H, W) over the optic cup."""
    y, x = np.indices(image.shape)
    inside = np.hypot((x - CUP_CENTRE_XY[0]) / CUP_RADII_PX[0], (y - CUP_CENTRE_XY[1]) / CUP_RADII_PX[1]) <= 1
    return np.asarray(inside.astype(np.uint8)[None])


def _brain(folder: Path) -> tuple[Picture, str, dict[str, float]]:
    image = read_picture(_installed_file("nilearn", NILEARN_T1))
    write_picture(image.stored, image, folder / "brain_original.nii.gz")
    return image, GLIOMA_PROMPT, GLIOMA_OPTIONS


def _fundus(folder: Path) -> tuple[Picture, str, dict[str, float]]:
    from PIL import Image

    path = folder / "fundus_original.png"
    with Image.open(_installed_file("skimage", SKIMAGE_RETINA)) as photograph, whole_file(path) as part:
        photograph.resize((RETINA_PX, RETINA_PX), Image.Resampling.LANCZOS).save(part)
    return read_picture(path), CUP_PROMPT, CUP_OPTIONS


CASES: dict[str, Callable[[Path], tuple[Picture, str, dict[str, float]]]] = {"brain": _brain, "fundus": _fundus}


def run_demo(folder: Path, *, seed: int = 0, progress: bool = False) -> list[DemoRow]:
    """Edit each case and write originals, results, masks, labels, records and previews.

    Args:
        folder: made when missing.
        seed: uint32 of both edits.
        progress: show a bar on stderr.

    Raises:
        MissingExtraError: nilearn or scikit-image is not installed.
        ModelSourceError: an embedded model is missing.
    """
    from tqdm import tqdm

    from monai_diffaug.commands.edit_file import (
        EditSettings,
        edit_picture,
        settings_as_json,
        write_edit,
    )
    from monai_diffaug.files.preview import draw_preview, save_preview
    from monai_diffaug.models.sources import check_model_source

    for package, file in (("nilearn", NILEARN_T1), ("skimage", SKIMAGE_RETINA)):
        if not _installed_file(package, file).is_file():
            raise MissingExtraError(f"{package} is installed without {file}: pip install -U monai_diffaug[demo]")
    for kind in ("inpainter", "validator"):
        check_model_source(kind, "tiny")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for case, prepare in tqdm(CASES.items(), desc="demo", disable=not progress):
        image, prompt, options = prepare(folder)
        settings = EditSettings(prompt, validate=True, **options)
        mask = glioma_mask(image) if case == "brain" else cup_mask(image)
        result = edit_picture(image, mask, settings, seed=seed, label=np.zeros_like(mask))
        details: dict[str, Any] = {"input": image.path.name, "settings": settings_as_json(settings), "seed": seed}
        write_edit(folder, f"{case}_edited", image, result, details)
        score = float(result.record["score"])
        caption = f'"{prompt}"   local SSIM {result.local_ssim:.2f}   changed outside {result.changed_outside}   validator {score:.2f}'
        preview = draw_preview(image.stored, result.values, mask=mask, affine=image.affine, caption=caption)
        save_preview(folder / f"{case}_preview.png", preview)
        rows.append(DemoRow(case, result.local_ssim, result.changed_outside, score, result.seconds))
    return rows


def table_of(rows: list[DemoRow]) -> str:
    """The rows as text, with a heading."""
    lines = [f"{'case':<8} {'local SSIM in mask':>19} {'changed outside':>16} {'validator':>10} {'seconds':>8}"]
    lines += [f"{r.case:<8} {r.local_ssim:>19.3f} {r.changed_outside:>16d} {r.score:>10.2f} {r.seconds:>8.1f}" for r in rows]
    return "\n".join(lines)
