"""Slice-to-slice continuity of an edited volume inside the mask, beside that of the volume as it was.

``python -m monai_diffaug.studies.continuity`` repaints the spleen of a CT and the cord of a spine MRI, neither of which the embedded
models have seen, with noise correlated along the slices to several degrees.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from monai_diffaug.edit.options import InpaintOptions, Noise
from monai_diffaug.geometry.slices import from_slices, slice_plane, to_slices
from monai_diffaug.studies.report import study_parser, write_json

__all__ = ["VOLUMES", "Continuity", "Row", "Volume", "continuity", "load_volume", "measure"]


@dataclass(frozen=True)
class Continuity:
    """How neighbouring slices go together; every figure has its counterpart in the original.

    Attributes:
        jump, original_jump: mean absolute difference of neighbouring slices where both are in the mask, in the image's unit.
        jump_ratio: their ratio; 1 is as smooth as the original, slices repainted one by one lie far above.
        correlation, original_correlation: Pearson correlation of neighbouring slices there, -1 to 1.
        end_jump, original_end_jump: the same difference where the mask begins or ends between two slices: from painted to real.
        end_jump_ratio: their ratio; nan when the mask begins and ends nowhere within the volume.
        n_pairs: neighbouring slices with voxels in both masks.
        n_voxels: voxel pairs behind ``jump``.
    """

    jump: float
    original_jump: float
    jump_ratio: float
    correlation: float
    original_correlation: float
    end_jump: float
    original_end_jump: float
    end_jump_ratio: float
    n_pairs: int
    n_voxels: int


def continuity(
    original: ArrayLike, edited: ArrayLike, mask: ArrayLike, *, affine: ArrayLike | None = None, plane: str = "axial"
) -> Continuity:
    """Measure along the direction in which the slices were cut.

    Args:
        original: (C, H, W, D) before the edit, any unit.
        edited: (C, H, W, D) after it.
        mask: (1, H, W, D) or (H, W, D), non-zero where it was repainted.
        affine: (4, 4) voxel to RAS mm; None means stored R, A, S.
        plane: of the slices: "axial", "coronal" or "sagittal".

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
    masks = to_slices(region, cut)
    inside = masks[1:] & masks[:-1]
    edge = masks[1:] ^ masks[:-1]
    if not inside.any():
        raise ValueError("no two neighbouring slices share a masked voxel: continuity needs a mask of two slices or more")
    old, new = to_slices(before, cut), to_slices(after, cut)
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


def _pairs(slices: Tensor, where: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    chosen = where.expand(-1, slices.shape[1], -1, -1)
    return slices[:-1][chosen].numpy(), slices[1:][chosen].numpy()


def _jump(slices: Tensor, where: Tensor) -> float:
    first, second = _pairs(slices, where)
    return float(np.abs(first - second).mean())


def _correlation(slices: Tensor, where: Tensor) -> float:
    first, second = _pairs(slices, where)
    a, b = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / scale) if scale > 0 else 1.0


class Volume(NamedTuple):
    """A volume of the data folder and what is repainted in it."""

    name: str
    image: str
    label: str
    label_value: int
    plane: str
    prompt: str
    window: tuple[float, float] | None


VOLUMES = (
    Volume("spleen, CT", "body_ct_3mm.nii.gz", "body_ct_3mm_organs.nii.gz", 1, "axial", "CT of abdomen, spleen", (-160.0, 240.0)),
    Volume("cord, MRI", "spine_t2.nii.gz", "spine_t2_cord.nii.gz", 1, "sagittal", "MRI of spine, disc or spinal canal", None),
)
MIN_AREA_PX = 30  # of the label in a slice: specks at an organ's ends are left out
RHO = (0.0, 0.5, 0.9, 1.0)


class Row(NamedTuple):
    """A volume, the noise it was repainted with, and how continuous the result is."""

    volume: str
    noise_rho: float
    figures: Continuity


def load_volume(volume: Volume, root: Path, slices: int | None = None) -> tuple[Any, Tensor]:
    """The image (1, H, W, D) with its affine, and the mask (1, H, W, D) uint8, of the middle ``slices`` of those that the label touches."""
    from monai.transforms import LoadImage

    load = LoadImage(ensure_channel_first=True, image_only=True)
    image: Any = load(root / "volumes" / volume.image)
    label: Any = load(root / "volumes" / volume.label)
    mask = torch.as_tensor(label.array == volume.label_value)
    stack = to_slices(mask, slice_plane(image.affine, volume.plane, 3))
    touched = torch.nonzero(stack.flatten(1).sum(1) >= MIN_AREA_PX).flatten()
    if slices is not None:
        start = max(0, (len(touched) - slices) // 2)
        touched = touched[start : start + slices]
    kept = torch.zeros_like(stack)
    kept[touched] = stack[touched]
    return image, from_slices(kept, slice_plane(image.affine, volume.plane, 3)).to(torch.uint8).contiguous()


def measure(
    slices: int | None = 10,
    *,
    model: Any = "tiny",
    noise_rho: Sequence[float] = RHO,
    volumes: Sequence[Volume] = VOLUMES,
    seed: int = 0,
    num_inference_steps: int = 12,
    guidance_scale: float = 3.0,
    root: Path | None = None,
) -> list[Row]:
    """Each volume's label repainted from noise with each correlation, the same seed.

    Args:
        slices: neighbouring slices repainted of each volume; None takes all that the label touches.
        model: source of the inpainter.
        noise_rho: correlations of the noise of neighbouring slices, each in [0, 1].
        volumes: what is repainted.
        seed: of the noise.
        num_inference_steps, guidance_scale: of the sampler.
        root: the data folder; default ``training.datasets.data_root()``.

    Raises:
        FileNotFoundError: there is no data folder.
    """
    from monai_diffaug.training.embedded.datasets import data_root
    from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

    folder = root or data_root()
    if folder is None:
        raise FileNotFoundError("no data folder: set MONAI_DIFFAUG_DATA to the folder that holds volumes/")
    rows = []
    for volume in volumes:
        image, mask = load_volume(volume, folder, slices)
        for rho in noise_rho:
            inpaint = DiffusionLocalInpaint(
                model,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                options=InpaintOptions(noise=Noise(rho=rho)),
                window=volume.window,
                plane=volume.plane,
                device="cpu",
            )
            edited = torch.as_tensor(inpaint.apply(image, mask, volume.prompt, seed=seed).image)
            found = continuity(image.array, edited, mask, affine=image.affine, plane=volume.plane)
            rows.append(Row(volume.name, rho, found))
    return rows


def table(rows: Sequence[Row]) -> str:
    """A line for each volume and correlation; the first of a volume is the volume as it was."""
    columns = f"{'slice pairs':>13}{'jump':>9}{'/ original':>12}{'correlation':>13}{'end jump / original':>21}"
    lines = [f"{'repainted':<14}{'noise rho':>10}{columns}"]
    for i, (name, rho, found) in enumerate(rows):
        if i == 0 or rows[i - 1].volume != name:
            was = f"{found.original_jump:>9.1f}{1:>12.2f}{found.original_correlation:>13.3f}{1:>21.2f}"
            lines.append(f"{name:<14}{'as it was':>10}{found.n_pairs:>13}{was}")
        now = f"{found.jump:>9.1f}{found.jump_ratio:>12.2f}{found.correlation:>13.3f}{found.end_jump_ratio:>21.2f}"
        lines.append(f"{name:<14}{rho:>10.2f}{found.n_pairs:>13}{now}")
    return "\n".join(lines)


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--slices", type=int, default=10, help="neighbouring slices of each volume")
    parser.add_argument("--noise-rho", default=",".join(f"{rho:g}" for rho in RHO))
    args = parser.parse_args()
    rows = measure(
        args.slices,
        model=args.model,
        noise_rho=[float(rho) for rho in args.noise_rho.split(",")],
        seed=args.seed,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
    )
    sys.stdout.write(f"seed {args.seed}, {args.steps} steps, guidance {args.guidance_scale:g}\n{table(rows)}\n")
    plain = [{"volume": row.volume, "noise_rho": row.noise_rho, **asdict(row.figures)} for row in rows]
    write_json({"settings": {**vars(args), "out": str(args.out)}, "rows": plain}, args.out)


if __name__ == "__main__":
    main()
