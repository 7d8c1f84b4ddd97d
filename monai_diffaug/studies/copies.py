"""Copies of real lesions, plain and disguised, and the share of them that ``LatentValidated(novelty=...)`` refuses."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.data.lesion_bank import LesionBank
from monai_diffaug.masks.soft_edge import soft_mask
from monai_diffaug.studies.masked_images import MaskedImage
from monai_diffaug.studies.painter import through_vae
from monai_diffaug.transforms.lesion_novelty import LesionNovelty

__all__ = ["DISGUISES", "GuardFigures", "copies", "guard_table", "measure_guard"]

SOFT_WIDTH_PX = 3.0  # of the edge where a copy meets its new surroundings

Picture = tuple[Tensor, Tensor]
"""Grey values (h, w) in 0 to 255 and the lesion's mask (h, w) in {0, 1}, float32."""


def _warped(picture: Picture, scale: float = 1.0, turn_degrees: float = 0.0) -> Picture:
    """Scale and turn about the middle of the mask."""
    image, mask = picture
    height, width = mask.shape
    rows, columns = torch.nonzero(mask, as_tuple=True)
    y, x = float(rows.float().mean()), float(columns.float().mean())
    angle = np.deg2rad(turn_degrees)
    ys, xs = torch.meshgrid(torch.arange(height) - y, torch.arange(width) - x, indexing="ij")
    from_x = (np.cos(angle) * xs + np.sin(angle) * ys) / scale + x
    from_y = (np.cos(angle) * ys - np.sin(angle) * xs) / scale + y
    grid = torch.stack([2 * from_x / (width - 1) - 1, 2 * from_y / (height - 1) - 1], -1)[None].float()
    moved = F.grid_sample(torch.stack([image, mask])[None], grid, padding_mode="border", align_corners=True)[0]
    return moved[0], (moved[1] > 0.5).float()


def _mask_moved(picture: Picture, share: float, rng: np.random.RandomState) -> Picture:
    """Shift the mask by ``share`` of its longer side along both axes."""
    image, mask = picture
    step = max(1, round(share * _side(mask)))
    return image, torch.roll(mask, (int(step * rng.choice([-1, 1])), int(step * rng.choice([-1, 1]))), (0, 1))


def _mask_wider(picture: Picture, share: float) -> Picture:
    reach = max(1, round(share * _side(picture[1])))
    return picture[0], F.max_pool2d(picture[1][None, None], 2 * reach + 1, 1, reach)[0, 0]


def _side(mask: Tensor) -> int:
    return max(int(mask.any(axis).sum()) for axis in (0, 1))


def _noisy(picture: Picture, deviation: float, rng: np.random.RandomState) -> Picture:
    return picture[0] + torch.from_numpy(rng.standard_normal(tuple(picture[0].shape)).astype(np.float32)) * deviation, picture[1]


def _blurred(picture: Picture, side_px: int) -> Picture:
    padded = F.pad(picture[0][None, None], (side_px // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, side_px, 1)[0, 0], picture[1]


DISGUISES: dict[str, Callable[[Picture, np.random.RandomState], Picture]] = {
    "exact": lambda picture, rng: picture,
    "mirrored": lambda picture, rng: (picture[0].flip(-1), picture[1].flip(-1)),
    "turned by 90 degrees": lambda picture, rng: (picture[0].rot90(), picture[1].rot90()),
    "grey values x 0.6 + 30": lambda picture, rng: (picture[0] * 0.6 + 30, picture[1]),
    "gamma 0.7": lambda picture, rng: (255 * (picture[0] / 255) ** 0.7, picture[1]),
    "noise of 10 grey values": lambda picture, rng: _noisy(picture, 10, rng),
    "noise of 25 grey values": lambda picture, rng: _noisy(picture, 25, rng),
    "blurred by 5 pixels": lambda picture, rng: _blurred(picture, 5),
    "through the autoencoder": lambda picture, rng: (through_vae(picture[0][None], picture[1])[0], picture[1]),
    "mask moved by 5 %": lambda picture, rng: _mask_moved(picture, 0.05, rng),
    "mask moved by 10 %": lambda picture, rng: _mask_moved(picture, 0.1, rng),
    "mask wider by 5 %": lambda picture, rng: _mask_wider(picture, 0.05),
    "size x 0.7": lambda picture, rng: _warped(picture, scale=0.7),
    "size x 1.3": lambda picture, rng: _warped(picture, scale=1.3),
    "turned by 5 degrees": lambda picture, rng: _warped(picture, turn_degrees=5),
    "turned by 10 degrees": lambda picture, rng: _warped(picture, turn_degrees=10),
}
"""Name -> change of a lesion before it is pasted; shares are of the mask's longer side."""


def copies(lesions: Sequence[MaskedImage], backgrounds: Sequence[Tensor], disguise: str, *, seed: int = 0) -> list[MaskedImage]:
    """Paste each lesion, grey and disguised, with a soft edge into a background (1, H, W); these take turns and are resized."""
    rng = np.random.RandomState(seed)
    pasted = []
    for turn, lesion in enumerate(lesions):
        image, mask = DISGUISES[disguise]((lesion.image.float().mean(0), lesion.mask[0].float()), rng)
        behind = F.interpolate(backgrounds[turn % len(backgrounds)][None].float(), mask.shape, mode="bilinear")[0, 0]
        weight = soft_mask(mask, SOFT_WIDTH_PX)
        mixed = (weight * image + (1 - weight) * behind).clamp(0, 255)
        pasted.append(replace(lesion, image=mixed[None], mask=(mask > 0)[None].to(torch.uint8)))
    return pasted


@dataclass(frozen=True)
class GuardFigures:
    """Shares that the guard refuses, of lesions that are painted, real (not seen by the generator) and copied, with their numbers.

    ``limit`` is the correlation at the guard's ``quantile``. ``caught`` has a share per disguise; "in place" are the training images.
    """

    quantile: float
    limit: float
    painted: float
    real: float
    caught: Mapping[str, float]
    n_bank: int
    n_painted: int
    n_real: int
    n_copies: int


def measure_guard(
    painted: Sequence[MaskedImage],
    training: Sequence[MaskedImage],
    held_out: Sequence[MaskedImage],
    backgrounds: Sequence[MaskedImage],
    *,
    quantile: float = 0.05,
    seed: int = 0,
) -> GuardFigures:
    """Judge painted and held-out lesions, and training lesions copied into backgrounds, by a guard with the training lesions as bank."""
    items: list[dict[Hashable, Any]] = [{"image": one.image, "label": one.mask, "group": one.group} for one in training]
    bank = LesionBank.of(items, group_key="group", window=(0, 255))
    guard = LesionNovelty(bank, quantile)

    def refused(lesions: Sequence[MaskedImage]) -> float:
        return float(np.mean([not guard(one.image, one.mask).novel for one in lesions]))

    chosen = [training[i] for i in np.random.RandomState(seed).permutation(len(training))[: len(backgrounds)]]
    caught = {}
    if chosen:
        images = [one.image for one in backgrounds]
        copied = {disguise: copies(chosen, images, disguise, seed=seed) for disguise in DISGUISES}
        caught = {name: refused(lesions) for name, lesions in {"in place": chosen, **copied}.items()}
    numbers = {"n_bank": len(bank), "n_painted": len(painted), "n_real": len(held_out), "n_copies": len(chosen)}
    return GuardFigures(quantile, guard.limit, refused(painted), refused(held_out), caught, **numbers)


def guard_table(figures: GuardFigures) -> str:
    """The shares as text."""
    lines = [
        f"guard of {figures.n_bank} training lesions: refused from a correlation of {figures.limit:.2f} inside the mask on "
        f"(quantile {figures.quantile:g})",
        f"  {'painted lesions':<28}{figures.painted:>6.2f}  (n = {figures.n_painted})",
        f"  {'real validation lesions':<28}{figures.real:>6.2f}  (n = {figures.n_real})",
    ]
    if figures.caught:
        lines.append(f"  training lesions copied into normal validation images, n = {figures.n_copies} each:")
        lines += [f"    {name:<26}{share:>6.2f}" for name, share in figures.caught.items()]
    return "\n".join(lines)
