"""The guard against copies, ``LatentValidated(novelty=...)``: what it refuses of painted, of real and of copied lesions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from monai_diffaug.data.lesion_bank import LesionBank
from monai_diffaug.studies.copies import DISGUISES, copies
from monai_diffaug.studies.regions import Region, free_places
from monai_diffaug.transforms.lesion_novelty import LesionNovelty

__all__ = ["GuardFigures", "guard_table", "measure_guard"]


@dataclass(frozen=True)
class GuardFigures:
    """Shares that the guard refuses.

    Attributes:
        quantile, limit: of the guard, and the correlation that it is.
        painted, real: shares of the painted lesions and of real ones that the generator has not seen.
        n_bank, n_painted, n_real: how many lesions there were.
        caught: disguise -> share of the copies that is refused; "in place" are the training images themselves.
        n_copies: of each disguise.
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
    painted: Sequence[Region],
    known: Sequence[Region],
    held_out: Sequence[Region],
    *,
    n_copies: int = 40,
    quantile: float = 0.05,
    seed: int = 0,
) -> GuardFigures:
    """A guard with the known lesions as its bank, asked about painted, held-out and copied lesions.

    Args:
        painted: lesions of the generator.
        known: lesions it was trained on.
        held_out: real lesions it was not trained on.
        n_copies: of each disguise, pasted into normal validation images; 0 makes none.
        quantile: of the guard.
        seed: which lesions are copied, and how.
    """
    bank = LesionBank.of(
        [{"image": region.image, "label": region.mask, "group": region.group} for region in known], group_key="group", window=(0, 255)
    )
    guard = LesionNovelty(bank, quantile)

    def refused(regions: Sequence[Region]) -> float:
        return float(np.mean([not guard(region.image, region.mask).novel for region in regions]))

    chosen = [known[i] for i in np.random.RandomState(seed).permutation(len(known))[:n_copies]]
    caught = {}
    if chosen:
        backgrounds = [place.image for place in free_places(len(chosen), seed=seed)]
        caught = {"in place": refused(chosen)}
        caught |= {disguise: refused(copies(chosen, backgrounds, disguise, seed=seed)) for disguise in DISGUISES}
    return GuardFigures(
        quantile, guard.limit, refused(painted), refused(held_out), len(bank), len(painted), len(held_out), caught, len(chosen)
    )


def guard_table(found: GuardFigures) -> str:
    """The shares as text."""
    lines = [
        f"guard of {found.n_bank} training lesions: refused from a correlation of {found.limit:.2f} inside the mask on "
        f"(quantile {found.quantile:g})",
        f"  {'painted lesions':<28}{found.painted:>6.2f}  (n = {found.n_painted})",
        f"  {'real validation lesions':<28}{found.real:>6.2f}  (n = {found.n_real})",
    ]
    if found.caught:
        lines.append(f"  training lesions copied into normal validation images, n = {found.n_copies} each:")
        lines += [f"    {name:<26}{share:>6.2f}" for name, share in found.caught.items()]
    return "\n".join(lines)
