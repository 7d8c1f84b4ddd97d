"""Slice-to-slice continuity of an edited volume inside the mask, next to that of the original volume.

Repaints labelled findings of volumes with noise that is correlated along the slices to several degrees. The list "volumes" of the packed
real data holds a CT (spleen) and a spine MRI (cord); the embedded models have seen neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import ArrayLike
from torch import Tensor

from monai_diffaug.edit.options import InpaintOptions, Noise
from monai_diffaug.geometry.slices import from_slices, slice_plane, to_slices
from monai_diffaug.prompts import compose_prompt, vocabulary_of
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import TRAINING, VALIDATION, VOLUMES, StudyData, StudyInputError, read_sections
from monai_diffaug.training.read_entry import LabelledImage, read_entry

__all__ = ["Continuity", "Row", "Volume", "continuity", "measure", "middle_slices", "table", "volumes_of"]


@dataclass(frozen=True)
class Continuity:
    """Differences of neighbouring slices; every figure has its counterpart in the original."""

    jump: float  # mean absolute difference of neighbouring slices where both are in the mask, in the image's unit
    original_jump: float
    jump_ratio: float  # 1 is as smooth as the original; slices repainted one by one lie far above
    correlation: float  # Pearson correlation of neighbouring slices there, -1 to 1
    original_correlation: float
    end_jump: float  # the difference where the mask begins or ends between two slices, from painted to real
    original_end_jump: float
    end_jump_ratio: float  # nan when the mask begins and ends nowhere within the volume
    n_pairs: int  # neighbouring slices with voxels in both masks
    n_voxels: int  # voxel pairs behind ``jump``


def continuity(
    original: ArrayLike, edited: ArrayLike, mask: ArrayLike, *, affine: ArrayLike | None = None, plane: str = "axial"
) -> Continuity:
    """Measure volumes (C, H, W, D) along the direction in which the slices were cut; the mask (1, H, W, D) or (H, W, D) was repainted.

    Raises:
        ValueError: shapes differ, no volume, or no two neighbouring slices share a masked voxel.
    """
    before, after = (torch.as_tensor(np.asarray(a, np.float64)) for a in (original, edited))
    region = torch.as_tensor(np.asarray(mask) != 0)
    region = region[None] if region.ndim == 3 else region
    if before.ndim != 4 or before.shape != after.shape or region.shape != (1, *before.shape[1:]):
        raise ValueError(
            f"original and edited must be one (C, H, W, D) and mask on its grid, got {tuple(before.shape)}, {tuple(after.shape)} "
            f"and {tuple(region.shape)}"
        )
    cut = slice_plane(affine, plane, 3)
    masks, old, new = to_slices(region, cut), to_slices(before, cut), to_slices(after, cut)
    inside, edge = masks[1:] & masks[:-1], masks[1:] ^ masks[:-1]
    if not inside.any():
        raise ValueError("no two neighbouring slices share a masked voxel: continuity needs a mask of two slices or more")
    jump, old_jump = _jump(new, inside), _jump(old, inside)
    end, old_end = (_jump(new, edge), _jump(old, edge)) if edge.any() else (float("nan"), float("nan"))
    return Continuity(
        jump=jump,
        original_jump=old_jump,
        jump_ratio=_ratio(jump, old_jump),
        correlation=_correlation(new, inside),
        original_correlation=_correlation(old, inside),
        end_jump=end,
        original_end_jump=old_end,
        end_jump_ratio=_ratio(end, old_end),
        n_pairs=int(inside.flatten(1).any(1).sum()),
        n_voxels=int(inside.sum()),
    )


def _ratio(value: float, of: float) -> float:
    return value / of if of > 0 else (1.0 if value == 0 else float("inf")) if of == 0 else float("nan")


def _jump(slices: Tensor, where: Tensor) -> float:
    chosen = where.expand(-1, slices.shape[1], -1, -1)
    return float((slices[:-1][chosen] - slices[1:][chosen]).abs().mean())


def _correlation(slices: Tensor, where: Tensor) -> float:
    chosen = where.expand(-1, slices.shape[1], -1, -1)
    a, b = (pixels - pixels.mean() for pixels in (slices[:-1][chosen], slices[1:][chosen]))
    scale = float((a.square().sum() * b.square().sum()).sqrt())
    return float((a * b).sum() / scale) if scale > 0 else 1.0


MIN_AREA_PX = 30  # of the label in a slice: specks at an organ's ends are left out
RHO = (0.0, 0.5, 0.9, 1.0)


class Volume(NamedTuple):
    """A finding in a volume that is repainted, with the plane, the window and the prompt of the transform."""

    name: str  # finding and modality
    image: MetaTensor  # (C, H, W, D) float32
    mask: Tensor  # (1, H, W, D) bool, where the finding is
    plane: str
    window: tuple[float, float] | None
    prompt: str


class Row(NamedTuple):
    """A volume, the correlation of the noise, and the continuity of the result."""

    volume: str
    noise_rho: float
    figures: Continuity


def volumes_of(data: StudyData) -> list[Volume]:
    """Each finding of each volume of the list "volumes", else of the validation or the training list; StudyInputError without any.

    An entry's "plane" and "window" take the place of those of ``data``.
    """
    sections = read_sections(data.file)
    for section in (VOLUMES, VALIDATION, TRAINING):
        chosen = [pair for pair in sections[section] if section == VOLUMES or pair[0].dataset in data.datasets]
        volumes = [volume for entry, row in chosen for volume in _findings_of(read_entry(entry), row, data)]
        if volumes:
            return volumes
    raise StudyInputError(f"this study needs labelled 3-D volumes, and {data.file} has none ({data.title})")


def _findings_of(content: LabelledImage, row: dict[str, Any], data: StudyData) -> list[Volume]:
    if content.affine is None:
        return []
    image, entry = MetaTensor(content.image.float(), affine=torch.from_numpy(content.affine)), content.entry
    modality = vocabulary_of(entry.modality).modality if entry.modality else ""
    plane, window = row.get("plane", data.plane), row.get("window", data.window)
    volumes = []
    for finding, mask in content.masks():
        prompt = compose_prompt(modality, entry.anatomy, finding) if modality else finding
        volumes.append(Volume(", ".join(filter(None, (finding, modality))), image, mask, plane, window and tuple(window), prompt))
    return volumes


def middle_slices(volume: Volume, count: int | None = None) -> Tensor:
    """The mask (1, H, W, D) uint8 on the middle ``count`` of the slices that it touches; None takes all of them."""
    cut = slice_plane(volume.image.affine, volume.plane, 3)
    stack = to_slices(volume.mask, cut)
    touched = torch.nonzero(stack.flatten(1).sum(1) >= MIN_AREA_PX).flatten()
    if count is not None:
        start = max(0, (len(touched) - count) // 2)
        touched = touched[start : start + count]
    middle = torch.zeros_like(stack)
    middle[touched] = stack[touched]
    return from_slices(middle, cut).to(torch.uint8).contiguous()


def measure(volumes: Sequence[Volume], painter: Painter, *, slices: int | None = 10, noise_rho: Sequence[float] = RHO) -> list[Row]:
    """Repaint the middle ``slices`` of each volume's finding from noise with each correlation in [0, 1], with the same seed."""
    rows = []
    for volume in volumes:
        mask = middle_slices(volume, slices)
        for rho in noise_rho:
            inpaint = painter.transform(InpaintOptions(noise=Noise(rho=rho)), window=volume.window, plane=volume.plane)
            edited = torch.as_tensor(inpaint.apply(volume.image, mask, volume.prompt, seed=painter.seed).image)
            figures = continuity(volume.image.array, edited, mask, affine=volume.image.affine, plane=volume.plane)
            rows.append(Row(volume.name, rho, figures))
    return rows


def table(rows: Sequence[Row]) -> str:
    """A line per volume and correlation; the first of a volume is the original."""
    columns = f"{'slice pairs':>13}{'jump':>9}{'/ original':>12}{'correlation':>13}{'end jump / original':>21}"
    lines = [f"{'repainted':<26}{'noise rho':>10}{columns}"]
    for i, (name, rho, figures) in enumerate(rows):
        if i == 0 or rows[i - 1].volume != name:
            original = f"{figures.original_jump:>9.1f}{1:>12.2f}{figures.original_correlation:>13.3f}{1:>21.2f}"
            lines.append(f"{name:<26}{'original':>10}{figures.n_pairs:>13}{original}")
        edited = f"{figures.jump:>9.1f}{figures.jump_ratio:>12.2f}{figures.correlation:>13.3f}{figures.end_jump_ratio:>21.2f}"
        lines.append(f"{name:<26}{rho:>10.2f}{figures.n_pairs:>13}{edited}")
    return "\n".join(lines)


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    painter = Painter.of(options)
    rows = measure(volumes_of(data), painter, slices=options.slices, noise_rho=[float(rho) for rho in options.noise_rho.split(",")])
    plain = [{"volume": row.volume, "noise_rho": row.noise_rho, **asdict(row.figures)} for row in rows]
    return f"{painter}\n{table(rows)}", {"rows": plain}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__)
    parser.add_argument("--slices", type=int, default=10, help="neighbouring slices of each volume")
    parser.add_argument("--noise-rho", default=",".join(f"{rho:g}" for rho in RHO), metavar="RHO,...")
    return run_study(parser, _study, arguments, needs="labelled 3-D volumes")
