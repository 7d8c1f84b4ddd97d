"""Is the mask's outline visible as a seam? Prints hard against soft masks.

A seam is a step of the grey value where the mask ends: the derivative across the boundary stands out from the
derivatives on its two sides. Image content has such steps too, so the figure is given relative to the original's at the
same place and relative to the image's own slopes.

Columns: "jump" is the mean step across the mask's outline beyond its two neighbouring differences, in grey levels (0 to 255); "/ original"
the same over that of the untouched image at this outline (1: no seam was added, 2: twice the step); "/ slopes" the jump over the mean slope
next to the outline; "worst contour / original" the largest "/ original" of contours from 2 pixels inside to 12 outside the outline, since a
soft edge may move a seam in place of removing it; "n" the number of lesions. Rows: a hard mask, then the soft modes of ``SoftEdge``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.edit.options import InpaintOptions, SoftEdge
from monai_diffaug.masks.soft_edge import SOFT_MODES
from monai_diffaug.studies.masked_images import MaskedImage, lesions_of_each
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import StudyData

__all__ = ["Seam", "SeamTable", "measure_seams", "seam", "seam_profile", "table"]

DATASETS = ("breast_ultrasound", "colonoscopy_polyp", "brain_mri_tumour")
OFFSETS_PX = tuple(range(-2, 13, 2))  # contours over which a soft edge of the default width spreads
SOFT_WIDTH = 12.0  # px at 512: 3 px of a lesion's crop of 128, wide enough for a ramp to exist


class Seam(NamedTuple):
    """Visibility of one contour: d_0 is the difference across it, d_-1 and d_1 are the neighbouring ones."""

    jump: float  # mean |d_0 - (d_-1 + d_1) / 2|, in the image's unit
    to_original: float  # over the original's jump at the same contour; 1: no seam was added. Infinite where the original is flat
    to_slopes: float  # over the mean slope (|d_-1| + |d_1|) / 2 on the two sides


def _jumps(image: NDArray[np.floating], inside: NDArray[np.bool_]) -> tuple[float, float, int]:
    """Sums over all boundary pairs, rows and columns, of the jump and of the slopes next to it, and their number."""
    jump, slope, count = 0.0, 0.0, 0
    for axis in (1, 2):
        values = np.moveaxis(image, axis, -1)
        mask = np.moveaxis(inside[None], axis, -1)[0]
        crossing = mask[:, 1:-2] != mask[:, 2:-1]
        difference = np.diff(values, axis=-1)
        before, across, after = difference[..., :-2], difference[..., 1:-1], difference[..., 2:]
        jump += float(np.abs(across - (before + after) / 2)[:, crossing].mean(0).sum())
        slope += float(((np.abs(before) + np.abs(after)) / 2)[:, crossing].mean(0).sum())
        count += int(crossing.sum())
    return jump, slope, count


def seam(original: NDArray[np.generic], result: NDArray[np.generic], mask: NDArray[np.generic]) -> Seam:
    """The jump of the normal derivative on the boundary (4-neighbours) of a mask (1, H, W) or (H, W); images are (C, H, W).

    ValueError: shapes differ, or the mask has no boundary at least two pixels from the image's border.
    """
    if original.shape != result.shape or original.ndim != 3:
        raise ValueError(f"original {original.shape} and result {result.shape} must have one shape (C, H, W)")
    inside = np.asarray(mask != 0).reshape(mask.shape[-2:])
    if inside.shape != original.shape[1:]:
        raise ValueError(f"mask {mask.shape} is not on the grid {original.shape[1:]} of the image")
    jump, slope, count = _jumps(result.astype(np.float64), inside)
    reference, _, _ = _jumps(original.astype(np.float64), inside)
    if count == 0:
        raise ValueError("the mask has no boundary inside the image: nothing to measure")
    return Seam(jump / count, _ratio(jump, reference), _ratio(jump, slope))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else (float("inf") if part > 0 else 0.0)


def seam_profile(
    original: NDArray[np.generic], result: NDArray[np.generic], mask: NDArray[np.generic], offsets_px: Sequence[float] = OFFSETS_PX
) -> list[Seam]:
    """``seam`` on contours at signed distances from the mask's boundary: a soft edge may move a seam instead of removing it.

    Distances are positive outside; 0 is the mask's own boundary. Contours that leave the image are left out.
    """
    from scipy.ndimage import distance_transform_edt

    inside = np.asarray(mask != 0).reshape(mask.shape[-2:])
    distance = distance_transform_edt(~inside) - distance_transform_edt(inside)
    profile = []
    for offset in offsets_px:
        contour = distance <= offset
        if contour[2:-2, 2:-2].any() and not contour[2:-2, 2:-2].all():
            profile.append(seam(original, result, contour))
    return profile


@dataclass(frozen=True)
class SeamTable:
    """Mean figures of one kind of mask over ``n`` images."""

    name: str  # "hard" or the soft mode
    boundary: Seam  # on the mask's boundary
    worst: float  # largest ``to_original`` on any contour of ``seam_profile``
    n: int


def measure_seams(lesions: Sequence[MaskedImage], painter: Painter, *, soft_width: float = SOFT_WIDTH) -> list[SeamTable]:
    """Hard, grow, inner and centre masks (see ``SoftEdge``) on the same lesions, each repainted with the same seeds."""
    tables = []
    for name in ("hard", *SOFT_MODES):
        edge = SoftEdge(width_px_at_512=0.0) if name == "hard" else SoftEdge(width_px_at_512=soft_width, mode=name)
        scores, worst = [], []
        edits = painter.paint(lesions, [one.prompt for one in lesions], InpaintOptions(soft_edge=edge))
        for before, after in zip(lesions, edits, strict=True):
            images = before.image.numpy(), after.image.numpy(), before.mask.numpy()
            scores.append(seam(*images))
            worst.append(max(s.to_original for s in seam_profile(*images)))
        mean = Seam(*(float(np.mean(column)) for column in zip(*scores, strict=True)))
        tables.append(SeamTable(name, mean, float(np.mean(worst)), len(lesions)))
    return tables


def table(rows: Sequence[SeamTable]) -> str:
    """One line per kind of mask."""
    lines = [f"{'mask':<8}{'jump':>8}{'/ original':>12}{'/ slopes':>10}{'worst contour / original':>26}{'n':>5}"]
    for row in rows:
        b = row.boundary
        lines.append(f"{row.name:<8}{b.jump:>8.2f}{b.to_original:>12.2f}{b.to_slopes:>10.2f}{row.worst:>26.2f}{row.n:>5}")
    return "\n".join(lines)


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    rows = measure_seams(lesions_of_each(data, options.images), Painter.of(options), soft_width=options.soft_width)
    return table(rows), {"rows": [{**asdict(row), "boundary": row.boundary._asdict()} for row in rows]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__)
    parser.add_argument("--images", type=int, default=4, help="lesions per data set")
    parser.add_argument("--soft-width", type=float, default=SOFT_WIDTH, help="pixels at 512")
    return run_study(parser, _study, arguments, needs="labelled lesions", preferred=DATASETS)
