"""The settings that a model paints best with, by modality: they travel with the model, in ``painting.json`` of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

__all__ = ["PAINTING_FILE", "PLAIN", "Painting", "painting_for", "read_paintings", "write_paintings"]

PAINTING_FILE = "painting.json"
DEFAULT = "default"


@dataclass(frozen=True)
class Painting:
    """Settings of the sampler where a transform leaves them to the model.

    Args:
        guidance_scale: scale of classifier-free guidance; 1 is none.
        guidance_interval: share of the steps with guidance, from the noisiest on.
        noise_gain: see ``Noise(gain)``.
        acquisition: see ``Noise(acquisition)``.

    Raises:
        ValueError: a value out of range.
    """

    guidance_scale: float = 3.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    noise_gain: float = 0.0
    acquisition: bool = False

    def __post_init__(self) -> None:
        begin, end = self.guidance_interval
        object.__setattr__(self, "guidance_interval", (float(begin), float(end)))
        if not (
            0 < self.guidance_scale < 100 and 0 <= begin < end <= 1 and 0 <= self.noise_gain <= 1 and isinstance(self.acquisition, bool)
        ):
            raise ValueError(f"guidance in (0, 100), an interval in [0, 1] and a noise gain in [0, 1] are needed, got {self}")


PLAIN = Painting()
"""The settings for a model that names none."""


def read_paintings(folder: Path) -> dict[str, Painting]:
    """The settings in a model's folder by modality, "default" for all others; empty where the folder has no ``painting.json``.

    Raises:
        ValueError: the file is damaged.
    """
    file = folder / PAINTING_FILE
    if not file.is_file():
        return {}
    names = {field.name for field in fields(Painting)}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {str(modality).lower(): Painting(**values) for modality, values in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} must map modalities to {', '.join(sorted(names))} ({error}); remove it, or train again") from error


def write_paintings(folder: Path, paintings: Mapping[str, Painting]) -> None:
    """Write ``painting.json``, if there is anything to write."""
    if paintings:
        content = {modality: asdict(each) for modality, each in paintings.items()}
        (folder / PAINTING_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def painting_for(paintings: Mapping[str, Painting], prompt: str) -> Painting:
    """The settings for a prompt, by the modality that it begins with; else those of "default", else ``PLAIN``.

    >>> painting_for({"ct": Painting(guidance_scale=1.0)}, "CT of liver, cyst").guidance_scale
    1.0
    >>> painting_for({"ct": Painting(guidance_scale=1.0)}, "a cyst").guidance_scale
    3.0
    """
    text = prompt.strip().lower()
    named = [modality for modality in paintings if text == modality or text.startswith((f"{modality} ", f"{modality},"))]
    return paintings.get(max(named, key=len, default=DEFAULT), PLAIN)
