"""The options of one edit, checked once."""

from __future__ import annotations

from dataclasses import dataclass

from monai_diffaug.geometry.slices import PLANES
from monai_diffaug.geometry.window import Window
from monai_diffaug.masks.soft_edge import SOFT_MODES

__all__ = ["RepaintSettings"]

SOFT_WIDTH_REFERENCE_PX = 512
NOISE_SOURCES = ("random", "inverted")
EDGE_REACH = 4.0  # standard deviations: the soft edge ends at 3, and the model has to see what goes on behind it


@dataclass(frozen=True)
class RepaintSettings:
    """The options of one edit; ``DiffusionLocalInpaint`` documents each.

    Raises:
        ValueError: an option out of range.
    """

    strength: float = 1.0
    num_inference_steps: int = 12
    guidance_scale: float = 3.0
    negative_prompt: str = ""
    noise_rho: float = 0.0
    window: Window | None = None
    plane: str = "axial"
    noise_source: str = "random"
    noise_scale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    soft_width: float = 4.0
    soft_width_mm: float | None = None
    soft_mode: str = "grow"
    slice_batch_size: int | None = None
    roi: bool = True
    roi_context: float = 2.0
    control_scale: float = 1.0
    control_inside: bool = True

    def __post_init__(self) -> None:
        _check(0.0 < self.strength <= 1.0, f"strength must be in (0, 1], got {self.strength}")
        _check(self.num_inference_steps >= 1, f"num_inference_steps must be >= 1, got {self.num_inference_steps}")
        _check(0.0 <= self.noise_rho <= 1.0, f"noise_rho must be in [0, 1], got {self.noise_rho}")
        _check(self.plane in PLANES, f"plane must be one of {', '.join(PLANES)}, got {self.plane!r}")
        _check(self.soft_mode in SOFT_MODES, f"soft_mode must be one of {', '.join(SOFT_MODES)}, got {self.soft_mode!r}")
        _check(self.soft_width >= 0, f"soft_width must be >= 0 pixels, got {self.soft_width}")
        width = self.soft_width_mm
        _check(width is None or width >= 0, f"soft_width_mm must be >= 0 mm, got {width}")
        asked = self.slice_batch_size
        _check(asked is None or asked >= 1, f"slice_batch_size must be >= 1, got {asked}")
        _check(self.noise_source in NOISE_SOURCES, f"noise_source must be one of {', '.join(NOISE_SOURCES)}, got {self.noise_source!r}")
        _check(0.0 <= self.noise_scale <= 1.0, f"noise_scale must be in [0, 1], got {self.noise_scale}")
        begin, end = self.guidance_interval
        _check(0.0 <= begin < end <= 1.0, f"guidance_interval needs 0 <= begin < end <= 1, got {self.guidance_interval}")
        _check(self.control_scale >= 0, f"control_scale must be >= 0, got {self.control_scale}")
        _check(self.roi_context >= 1.0, f"roi_context must be >= 1, got {self.roi_context}")

    @property
    def hard_edge(self) -> bool:
        """The region has no soft edge."""
        return (self.soft_width if self.soft_width_mm is None else self.soft_width_mm) == 0

    @property
    def guided(self) -> bool:
        """Classifier-free guidance is on: two UNet evaluations a step."""
        return self.guidance_scale > 1.0

    def soft_width_px(self, side: int, pixel_mm: float) -> float:
        """Standard deviation of the soft edge in pixels of a slice, of which the model sees a square of ``side`` pixels."""
        if self.soft_width_mm is not None:
            return self.soft_width_mm / pixel_mm
        return self.soft_width * side / SOFT_WIDTH_REFERENCE_PX

    def least_side(self, extent: int, pixel_mm: float) -> float:
        """Side in pixels of the smallest square that holds a mask of ``extent`` pixels, its soft edge and a rim of the tissue around."""
        if self.soft_mode == "inner":
            return float(extent)
        if self.soft_width_mm is not None:
            return extent + 2 * EDGE_REACH * self.soft_width_mm / pixel_mm
        edge_share = 2 * EDGE_REACH * self.soft_width / SOFT_WIDTH_REFERENCE_PX
        return extent / max(1 - edge_share, 0.01)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
