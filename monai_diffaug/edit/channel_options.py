"""The options of images with several co-registered channels, e.g. the contrasts of an MRI examination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monai_diffaug.edit.signature import option_group

__all__ = ["Channels"]

PROMPT_FIELD = "{prompt}"


@option_group
@dataclass(frozen=True)
class Channels:
    """How the channels of an image are repainted: one by one, with the same mask and the same noise, so that the edits agree.

    Without these options one channel is grey, three are a colour picture if they can be (uint8, or ranges at most 200 times apart, or one
    ``window=`` for them), and others are repainted one by one with the prompt of the sample, each in its own window. Any of these options
    repaints the channels one by one, three as well. A constant channel next to others stays as it is: that contrast was not recorded.

    Args:
        only: indices of the channels that are repainted; the others stay bit-identical. None means all.
        prompts: one text per repainted channel; ``{prompt}`` in it stands for the prompt of the sample. The record holds the sample's.
        windows: one intensity range per repainted channel; None takes ``window=`` for all, else the percentiles of each.
        separate: repaint three channels one by one although they could be colours.

    Raises:
        ValueError: an index is negative or named twice, or there are not as many prompts or windows as channels in ``only``.

    >>> Channels(only=(0, 3), prompts=("{prompt}, T1-weighted", "{prompt}, FLAIR"))
    Channels(only=(0, 3), prompts=('{prompt}, T1-weighted', '{prompt}, FLAIR'))
    """

    only: Sequence[int] | None = None
    prompts: Sequence[str] | None = None
    windows: Sequence[tuple[float, float]] | None = None
    separate: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            raise ValueError(f"prompts must be a list with one text per channel, got the text {self.prompts!r}")
        for name in ("only", "prompts", "windows"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.only is not None and (not self.only or min(self.only) < 0 or len(set(self.only)) < len(self.only)):
            raise ValueError(f"only must name channels by their index, from 0 on and each once, got {self.only}")
        for name in ("prompts", "windows"):
            if self.only is not None and getattr(self, name) is not None:
                self._check_count(name, len(self.only))

    @property
    def one_by_one(self) -> bool:
        """The channels are repainted one by one, whatever they are."""
        return self.separate or any(value is not None for value in (self.only, self.prompts, self.windows))

    def chosen(self, channels: int) -> tuple[int, ...]:
        """Indices of the repainted channels of an image with so many channels.

        Raises:
            ValueError: the image lacks a channel, or there is not one prompt or window for each.
        """
        if self.only is not None and max(self.only) >= channels:
            raise ValueError(f"only names channel {max(self.only)}, and the image has {channels} (0 to {channels - 1})")
        indices = tuple(range(channels)) if self.only is None else tuple(self.only)
        for name in ("prompts", "windows"):
            self._check_count(name, len(indices))
        return indices

    def prompt_of(self, position: int, prompt: str) -> str:
        """The text of the repainted channel at a position of ``chosen``.

        >>> Channels(prompts=("{prompt}, T2-weighted",)).prompt_of(0, "MRI of brain, glioma")
        'MRI of brain, glioma, T2-weighted'
        """
        return prompt if self.prompts is None else self.prompts[position].replace(PROMPT_FIELD, prompt)

    def _check_count(self, name: str, count: int) -> None:
        values = getattr(self, name)
        if values is not None and len(values) != count:
            raise ValueError(f"{name} needs one entry for each of the {count} repainted channels, got {len(values)}")
