"""The options of the validator, in groups: each group checks its own values, and a Bundle config writes it through ``_target_``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from monai_diffaug.edit.signature import option_group

__all__ = ["ON_EXHAUSTED", "Dynamic", "Screen", "Validator"]

ON_EXHAUSTED = ("original", "flag", "drop")


@option_group
@dataclass(frozen=True)
class Validator:
    """The options of ``LatentValidate`` and ``LatentValidated`` that are rarely set.

    Args:
        min_coverage: least share of the mask that the prediction covers.
        max_false_positive: largest predicted area outside the mask, relative to the mask's area, within the dilated box.
        box_margin: how far that box reaches beyond the mask's bounding box, relative to the box's sides.
        rim: width of the band around the mask in which a prediction is no false positive, relative to the crop's side: no segmenter
            agrees with an outline to the pixel, and a lesion of 60 px grown by one pixel has 7 % more area.
        min_change: least mean absolute change inside the mask, relative to the window's width; needs the original.
        min_texture: least mean absolute difference of neighbouring pixels inside the mask, relative to the window's width, pooled over the
            slices. No tissue is as even as a flat patch: of 161 real lesions all have more than 0.002, half a grey level of 255
            (``monai_diffaug.studies.judge``). 0 does not look at it.
        context: side of the crop relative to the mask's longer side.
        min_side_px: smallest crop in pixels of the slice.
        size_px: side the crops are resampled to, for a model that does not state its own.
        batch_size: crops per model call.
        channels: indices of the channels that are judged, one by one; their predictions are averaged. None judges a grey or colour picture
            as it is, and all channels of another image.
        dtype: floating type of the spec; the embedded model's step always runs in float32.
        on_exhausted: only the dictionary form, with ``on_reject="retry"``: the fate of the best candidate (by its Dice) when none was
            accepted, "original", "flag" or "drop". Its score and reason stand in the record in any case. Candidates that the screen
            refused are the best when there are no others; of these, one is decoded for "flag" only.
        refine_label: only the dictionary form: the label of an accepted edit is the prediction instead of the whole mask.
        record_postfix: only the dictionary form: postfix of the record that is filled; None takes that of ``inpaint``, else "diffaug".
        trust_config: a model that is the folder of a MONAI Bundle may be built, which runs code that its config names.

    Raises:
        ValueError: an option out of range.

    >>> from monai_diffaug import LatentValidate
    >>> LatentValidate(min_dice=0.6, options=Validator(rim=0.05)).options
    Validator(rim=0.05)
    """

    min_coverage: float = 0.7
    max_false_positive: float = 0.05
    box_margin: float = 0.2
    rim: float = 0.03
    min_change: float = 0.01
    min_texture: float = 0.0
    context: float = 2.0
    min_side_px: int = 32
    size_px: int = 128
    batch_size: int = 8
    channels: Sequence[int] | None = None
    dtype: str = "float32"
    on_exhausted: str = "original"
    refine_label: bool = False
    record_postfix: str | None = None
    trust_config: bool = False

    def __post_init__(self) -> None:
        if self.channels is not None:
            object.__setattr__(self, "channels", tuple(self.channels))
        if self.channels is not None and (not self.channels or min(self.channels) < 0):
            raise ValueError(f"channels must name the channels that are judged, from 0 on, got {self.channels}")
        for name in ("min_coverage", "min_change", "min_texture"):
            check_share(name, getattr(self, name))
        for name, least in (
            ("max_false_positive", 0),
            ("box_margin", 0),
            ("rim", 0),
            ("batch_size", 1),
            ("size_px", 8),
            ("min_side_px", 1),
            ("context", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.on_exhausted not in ON_EXHAUSTED:
            raise ValueError(f"on_exhausted must be one of {', '.join(ON_EXHAUSTED)}, got {self.on_exhausted!r}")


@option_group
@dataclass(frozen=True)
class Screen:
    """A judge of a candidate's latents before they are decoded (needs ``inpaint``).

    Args:
        source: "tiny" (embedded), a folder, a ``LatentScreen``, a module or a callable, see ``load_latent_screen``.
        min_dice: least Dice of the screen's prediction and the mask, at the size of the latents, pooled over the slices.
        after: share of the sampling steps after which the screen looks, in (0, 1], at the clean latents that are predicted by then: a
            refused candidate is spared the other steps too. 1 looks at the finished latents. 63 of 65 accepted candidates pass the
            defaults, 33 of 55 rejected are caught (``monai_diffaug.studies.screen_savings``).

    Raises:
        ValueError: an option out of range.

    >>> Screen(after=1.0)
    Screen(after=1.0)
    """

    source: Any = "tiny"
    min_dice: float = 0.7
    after: float = 0.25

    def __post_init__(self) -> None:
        check_share("screen min_dice", self.min_dice)
        if not 0 < self.after <= 1:
            raise ValueError(f"screen after must lie in (0, 1], got {self.after}")


@option_group
@dataclass(frozen=True)
class Dynamic:
    """A threshold that rises with the scores: the least Dice is max(min_dice, quantile of the last scores).

    Args:
        quantile: of the last scores, in [0, 1]; with a screen they are those of candidates that passed it.
        length: number of scores that count.

    Raises:
        ValueError: an option out of range.

    >>> from monai_diffaug import LatentValidated
    >>> validate = LatentValidated("image", dynamic=Dynamic(quantile=0.5))
    >>> validate.scores = [0.6, 0.8, 0.9]
    >>> validate.threshold
    0.8
    """

    quantile: float = 0.3
    length: int = 256

    def __post_init__(self) -> None:
        check_share("dynamic quantile", self.quantile)
        if self.length < 1:
            raise ValueError(f"dynamic length must be 1 or more, got {self.length}")


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
