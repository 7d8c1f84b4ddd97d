"""The guard against copies, ``LatentValidated(novelty=...)``: shares of painted, real and copied lesions that it refuses."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_diffaug.data.lesion_bank import LesionBank
from monai_diffaug.studies.copies import DISGUISES, copies
from monai_diffaug.studies.masked_images import MaskedImage
from monai_diffaug.transforms.lesion_novelty import LesionNovelty

__all__ = ["GuardFigures", "guard_table", "measure_guard"]


@dataclass(frozen=True)
class GuardFigures:
    """Shares that the guard refuses.

    Attributes:
        quantile, limit: quantile of the guard, and the correlation at that quantile.
        painted, real: shares of the painted lesions and of real ones that the generator has not seen.
        n_bank, n_painted, n_real: numbers of lesions.
        caught: disguise -> share of the copies that is refused; "in place" are the training images themselves.
        n_copies: copies per disguise.
    """

    quantile: float
    limit: float
    painted: float
    real: float
    n_bank: int
    n_painted: int
    n_real: int
    caught: Mapping[str, float]
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
    """Judge painted, held-out and copied lesions by a guard with the training lesions as its bank.

    Args:
        painted: lesions of the generator.
        training: lesions that it was trained on.
        held_out: real lesions that it was not trained on.
        backgrounds: images that training lesions are copied into, one copy per disguise and image; none makes no copies.
        quantile: of the guard.
        seed: of the choice of copied lesions, and of the disguises.
    """
    items: list[dict[Hashable, Any]] = [{"image": one.image, "label": one.mask, "group": one.group} for one in training]
    bank = LesionBank.of(items, group_key="group", window=(0, 255))
    guard = LesionNovelty(bank, quantile)

    def refused(lesions: Sequence[MaskedImage]) -> float:
        return float(np.mean([not guard(one.image, one.mask).novel for one in lesions]))

    chosen = [training[i] for i in np.random.RandomState(seed).permutation(len(training))[: len(backgrounds)]]
    caught = {}
    if chosen:
        images = [one.image for one in backgrounds]
        caught = {"in place": refused(chosen)}
        caught |= {disguise: refused(copies(chosen, images, disguise, seed=seed)) for disguise in DISGUISES}
    return GuardFigures(
        quantile, guard.limit, refused(painted), refused(held_out), len(bank), len(painted), len(held_out), caught, len(chosen)
    )


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
