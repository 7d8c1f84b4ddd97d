"""The options of a transplant, in groups: which donor, its geometry, and how it is blended in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from monai_diffaug.edit.options import InpaintOptions, Noise, check_group
from monai_diffaug.edit.record import DiffAugRecord
from monai_diffaug.edit.signature import option_group

__all__ = ["KEPT_NOISE", "Blend", "Donors", "Geometry", "Transplant", "TransplantRecord"]

KEPT_NOISE = InpaintOptions(noise=Noise(gain=0.0, acquisition=False))
"""Options of the repainting of a transplant: the donor brings its own texture and noise."""

MATCHES = ("rim", "spread", "none")
JOINS = ("gradient", "soft")


@dataclass
class TransplantRecord(DiffAugRecord):
    """The record of a transplant: a ``DiffAugRecord`` that also names the donor.

    Attributes:
        donor: name of the donor in its bank, e.g. "breast/0003.png#1"; empty when nothing was transplanted.
        donor_group: its patient or group; empty when nothing was transplanted.

    >>> TransplantRecord(donor="breast/0003.png#1", donor_group="patient 3").as_dict()["donor"]
    'breast/0003.png#1'
    """

    donor: str = ""
    donor_group: str = ""


@option_group
@dataclass(frozen=True)
class Donors:
    """The donors that may be drawn. A donor of the sample's own group is never drawn.

    Args:
        finding: word or words of the donor; None takes all.
        modality: word or words of its modality; None takes all.
        exclude_groups: groups whose lesions are not taken, e.g. those of the validation fold.

    >>> Donors(finding=["benign mass", "malignant mass"], exclude_groups=["patient_7"])
    Donors(finding=['benign mass', 'malignant mass'], exclude_groups=('patient_7',))
    """

    finding: str | Sequence[str] | None = None
    modality: str | Sequence[str] | None = None
    exclude_groups: Sequence[Any] = ()

    def __post_init__(self) -> None:
        if isinstance(self.exclude_groups, str):
            raise ValueError(f"exclude_groups must be a list of groups, got the text {self.exclude_groups!r}")
        object.__setattr__(self, "exclude_groups", tuple(str(group) for group in self.exclude_groups))


@option_group
@dataclass(frozen=True)
class Geometry:
    """What is done to the donor's lesion before it is placed; sizes are in mm of donor and target (1 mm per pixel without an affine).

    Args:
        mirror: axes of a slice that are flipped with probability 1/2: "columns" (left to right), "rows", "both" or "none".
            ``LoadImaged`` reads pictures columns first: "rows" is then left to right.
        rotate_deg: largest rotation in the slice, in both directions.
        scale_range: smallest and largest factor of the lesion's size.
        size_mm: smallest and largest longer side in a slice, in mm; replaces ``scale_range``.
        elastic: standard deviation of the shifts of an elastic deformation, as a share of the lesion's longer side; 0 for none.

    Raises:
        ValueError: an option out of range.

    >>> Geometry(size_mm=(5, 15), rotate_deg=180)
    Geometry(rotate_deg=180, size_mm=(5, 15))
    """

    mirror: str = "columns"
    rotate_deg: float = 15.0
    scale_range: tuple[float, float] = (0.8, 1.25)
    size_mm: tuple[float, float] | None = None
    elastic: float = 0.04

    def __post_init__(self) -> None:
        _check(self.mirror in ("columns", "rows", "both", "none"), f"mirror must be columns, rows, both or none, got {self.mirror!r}")
        _check(0 <= self.rotate_deg <= 180, f"rotate_deg must be in [0, 180], got {self.rotate_deg}")
        _check(0 <= self.elastic <= 0.2, f"elastic must be in [0, 0.2], got {self.elastic}")
        for name, pair in (("scale_range", self.scale_range), ("size_mm", self.size_mm)):
            if pair is not None:
                _check(
                    len(pair) == 2 and 0 < pair[0] <= pair[1],
                    f"{name} must be (smallest, largest) with 0 < smallest <= largest, got {pair}",
                )


@option_group
@dataclass(frozen=True)
class Blend:
    """How the donor's pixels are made to fit, before the diffusion model refines them.

    Args:
        match: "rim": the mean of the tissue around the lesion is brought to that of the new place, and the ends of the image's window to
            those of the other image, linearly in between: black stays black. "spread": mean and standard deviation of the tissue around
            the lesion; "none".
        join: "gradient": brightness is carried over from the new surround, so that the join is continuous (Poisson), under a soft edge;
            "soft": the soft edge alone, which keeps more of the donor's own shading.
        margin: width of the donor's own surround that is pasted along with the lesion, in longer sides of the lesion.
        keep_detail: put back the fine detail that the model's autoencoder loses, so that only the sampler changes the lesion.

    Raises:
        ValueError: an option is unknown or out of range.

    >>> Blend(match="none", join="soft")
    Blend(match='none', join='soft')
    """

    match: str = "rim"
    join: str = "gradient"
    margin: float = 0.1
    keep_detail: bool = True

    def __post_init__(self) -> None:
        _check(self.match in MATCHES, f"match must be one of {', '.join(MATCHES)}, got {self.match!r}")
        _check(self.join in JOINS, f"join must be one of {', '.join(JOINS)}, got {self.join!r}")
        _check(0 <= self.margin <= 0.5, f"margin must be in [0, 0.5], got {self.margin}")


@option_group
@dataclass(frozen=True)
class Transplant:
    """The options of ``TransplantLesion`` and ``TransplantLesiond`` that are rarely set.

    Args:
        donors: which lesions may be drawn.
        geometry: what is done to their shape.
        blend: what is done to their intensities.
        place: likelihood of the lesion's middle: the key of a map (1, H, W[, D]) >= 0 in the dictionary form, or a function of the image
            (C, H, W[, D]) that returns one; None is uniform. It is multiplied by what is free.
        background: class ids of the label that count as free, e.g. those of organs.
        record_postfix: the dictionary form writes the record ``{key}_{record_postfix}``.

    Raises:
        TypeError: a group is of another class.

    >>> Transplant(donors=Donors(finding="polyp"), geometry=Geometry(rotate_deg=180), background=[1])
    Transplant(donors=Donors(finding='polyp'), geometry=Geometry(rotate_deg=180), background=[1])
    """

    donors: Donors = field(default_factory=Donors)
    geometry: Geometry = field(default_factory=Geometry)
    blend: Blend = field(default_factory=Blend)
    place: str | Callable[[Tensor], Any] | None = None
    background: Sequence[int] = ()
    record_postfix: str = "diffaug"

    def __post_init__(self) -> None:
        check_group("donors", self.donors, Donors)
        check_group("geometry", self.geometry, Geometry)
        check_group("blend", self.blend, Blend)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
