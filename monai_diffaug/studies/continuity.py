"""Does a lesion painted slice by slice look like a real one in all three planes?

Labelled findings of volumes are repainted: with independent noise, with noise that all slices share, and with the options that keep a
lesion together: the scanner's noise (``Noise(acquisition)``), slices joined after decoding (``joined_mm``) and low frequencies of the noise
that are coherent over millimetres (``Noise(coherence_mm)``). Inside the mask, along each of the three axes, against the real finding: the
jump between neighbouring slices, their correlation, and the spectrum (root mean squares of the differences between the means of 1, 2 and 4
neighbouring voxels and those of the next 1, 2 and 4). The goal is 0.8 to 1.25 of the real jump and spectrum. The list "volumes" of
the packed real data holds a CT (spleen) and a spine MRI (cord); the embedded models have seen neither.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import ArrayLike
from torch import Tensor

from monai_diffaug.edit.options import InpaintOptions, Noise
from monai_diffaug.geometry.slices import PLANES, from_slices, slice_plane, to_slices
from monai_diffaug.prompts import compose_prompt, vocabulary_of
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import TRAINING, VALIDATION, VOLUMES, StudyData, StudyInputError, read_sections
from monai_diffaug.training.read_entry import LabelledImage, read_entry

__all__ = [
    "Continuity",
    "Row",
    "Volume",
    "continuity",
    "measure",
    "middle_slices",
    "settings_of",
    "spectrum_along",
    "table",
    "volumes_of",
    "within_goal",
]


SPANS = (1, 2, 4)  # voxels
GOAL = (0.8, 1.25)
MIN_AREA_PX = 30  # of the label in a slice: specks at an organ's ends are left out
RHO = (0.0, 1.0)
JOINED_MM, COHERENCE_MM = 6.0, 12.0


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
    spectrum: tuple[float, ...] = ()  # ``spectrum_along`` the slicing axis, edited / original, one per length of ``SPANS``


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
        spectrum=tuple(map(_ratio, spectrum_along(new, masks), spectrum_along(old, masks))),
    )


def spectrum_along(slices: Tensor, masks: Tensor) -> list[float]:
    """Amplitude along the slices of (S, C, h, w), by octaves: half the root mean square of the difference between the mean of n voxels in
    the mask (S, 1, h, w) and that of the next n, for each n of ``SPANS`` (a Haar wavelet; as square, half the Allan variance).

    White noise of standard deviation 1 has .71, .50 and .35. NaN where the mask has no 2 n voxels in a row.
    """
    amplitudes = []
    for span in SPANS:
        if len(slices) < 2 * span:
            amplitudes.append(float("nan"))
            continue
        runs, inside = slices.unfold(0, 2 * span, 1), masks.unfold(0, 2 * span, 1).all(-1)
        difference = (runs[..., :span].mean(-1) - runs[..., span:].mean(-1)) / 2
        chosen = difference[inside.expand_as(difference)]
        amplitudes.append(float(chosen.square().mean().sqrt()) if len(chosen) >= MIN_AREA_PX else float("nan"))
    return amplitudes


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


def within_goal(figures: Continuity) -> bool:
    """Jump and spectrum are within 0.8 to 1.25 of the real finding's."""
    return all(GOAL[0] <= ratio <= GOAL[1] for ratio in (figures.jump_ratio, *figures.spectrum) if not np.isnan(ratio))


class Volume(NamedTuple):
    """A finding in a volume that is repainted, with the plane, the window and the prompt of the transform."""

    name: str  # finding and modality
    image: MetaTensor  # (C, H, W, D) float32
    mask: Tensor  # (1, H, W, D) bool, where the finding is
    plane: str
    window: tuple[float, float] | None
    prompt: str


class Row(NamedTuple):
    """A volume that was repainted with some options."""

    volume: str
    setting: str  # name of the options
    seconds: float  # processor time of the edit
    planes: dict[str, Continuity]  # across the slices of each plane


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


def settings_of(
    noise_rho: Sequence[float] = RHO, joined_mm: float = JOINED_MM, coherence_mm: float = COHERENCE_MM
) -> dict[str, InpaintOptions]:
    """Options by name: each correlation of the noise; then acquisition noise, joined slices and coherent noise, one added to the other."""
    settings = {f"noise rho {rho:g}": InpaintOptions(noise=Noise(rho=rho, acquisition=False)) for rho in noise_rho}
    settings["acquisition noise"] = InpaintOptions(noise=Noise(acquisition=True))
    if joined_mm > 0:
        settings[f"+ joined {joined_mm:g} mm"] = InpaintOptions(noise=Noise(acquisition=True), joined_mm=joined_mm)
    if coherence_mm > 0:
        noise = Noise(coherence_mm=coherence_mm, acquisition=True)
        settings[f"+ coherence {coherence_mm:g} mm"] = InpaintOptions(noise=noise, joined_mm=joined_mm)
    return settings


def measure(
    volumes: Sequence[Volume], painter: Painter, *, slices: int | None = 10, settings: dict[str, InpaintOptions] | None = None
) -> list[Row]:
    """Repaint the middle ``slices`` of each volume's finding with each of the ``settings_of``, with the same seed."""
    rows = []
    for volume in volumes:
        mask = middle_slices(volume, slices)
        painter.transform().inpainter_on(torch.device("cpu"))  # loading it is not part of the time
        for name, options in (settings_of() if settings is None else settings).items():
            inpaint = painter.transform(options, window=volume.window, plane=volume.plane)
            start = time.process_time()
            edited = torch.as_tensor(inpaint.apply(volume.image, mask, volume.prompt, seed=painter.seed).image)
            seconds = time.process_time() - start
            planes = {
                plane: continuity(volume.image.array, edited, mask, affine=volume.image.affine, plane=plane)
                for plane in (volume.plane, *(plane for plane in PLANES if plane != volume.plane))
            }
            rows.append(Row(volume.name, name, seconds, planes))
    return rows


def table(rows: Sequence[Row]) -> str:
    """A line per volume, setting and plane; the plane that was painted comes first. Jump and spectrum are ratios to the real finding."""
    head = f"{'repainted':<28}{'options':<22}{'across':<10}{'pairs':>6}{'jump':>7}{'correlation (real)':>20}"
    lines = [f"{head}{'spectrum 1, 2, 4':>20}{'goal':>6}{'seconds':>9}"]
    for name, setting, seconds, planes in rows:
        for i, (plane, figures) in enumerate(planes.items()):
            correlation = f"{figures.correlation:.2f} ({figures.original_correlation:.2f})"
            spectrum = ", ".join(f"{ratio:.2f}" for ratio in figures.spectrum)
            shown = (
                f"{figures.n_pairs:>6}{figures.jump_ratio:>7.2f}{correlation:>20}{spectrum:>20}{'yes' if within_goal(figures) else 'no':>6}"
            )
            lines.append(
                f"{name if i == 0 else '':<28}{setting if i == 0 else '':<22}{plane:<10}{shown}" + (f"{seconds:>9.1f}" if i == 0 else "")
            )
    return "\n".join(lines)


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    painter = Painter.of(options)
    try:
        settings = settings_of([float(rho) for rho in options.noise_rho.split(",")], options.joined_mm, options.coherence_mm)
    except ValueError as error:
        raise StudyInputError(str(error)) from error
    rows = measure(volumes_of(data), painter, slices=options.slices, settings=settings)
    plain = [
        {
            **row._asdict(),
            "planes": {plane: {**asdict(figures), "within_goal": within_goal(figures)} for plane, figures in row.planes.items()},
        }
        for row in rows
    ]
    return f"{painter}\n{table(rows)}", {"rows": plain}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__)
    parser.add_argument("--slices", type=int, default=10, help="neighbouring slices of each volume")
    parser.add_argument("--noise-rho", default=",".join(f"{rho:g}" for rho in RHO), metavar="RHO,...")
    parser.add_argument("--joined-mm", type=float, default=JOINED_MM, metavar="MM", help="joined_mm; default %(default)s")
    parser.add_argument("--coherence-mm", type=float, default=COHERENCE_MM, metavar="MM", help="Noise(coherence_mm); default %(default)s")
    return run_study(parser, _study, arguments, needs="labelled 3-D volumes")
