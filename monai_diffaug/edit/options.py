"""The options of one edit, in groups: each group checks its own values, and a Bundle config writes it through ``_target_``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from monai_diffaug.edit.channel_options import Channels
from monai_diffaug.edit.contrast import Contrast
from monai_diffaug.edit.record import RECORD_POSTFIX
from monai_diffaug.edit.signature import option_group
from monai_diffaug.geometry.roi import RESAMPLINGS
from monai_diffaug.geometry.slices import PLANES
from monai_diffaug.geometry.window import Window
from monai_diffaug.masks.soft_edge import SOFT_MODES
from monai_diffaug.models.registry import spec_of

__all__ = ["ControlNet", "InpaintOptions", "Noise", "Region", "RepaintSettings", "Run", "SemanticController", "SoftEdge"]

SOFT_WIDTH_REFERENCE_PX = 512
NOISE_SOURCES = ("random", "inverted")
LARGEST_REFERENCE_MM = 1.0  # size of a pixel up to which ``width_px_at_512`` counts in pixels, and above in mm
EDGE_REACH = 4.0  # standard deviations: the soft edge ends at 3, and the model has to see the tissue behind it


@option_group
@dataclass(frozen=True)
class Noise:
    """The noise that an edit starts from, and how its sampler treats it.

    Args:
        rho: correlation of the initial noise of neighbouring slices, in [0, 1].
        source: "random", or "inverted": the noise that the sampler would turn into the image itself (DDIM inversion, two more UNet
            evaluations per step and twelve at the last), so that ``scale`` is the distance to the original.
        scale: share g of fresh noise under the mask, sqrt(1 - g^2) eps + g eta, in [0, 1]. With "random" it moves a result away from
            its g = 0 twin, with "inverted" away from the original (MILA-TMGDiff).
        gain: in [0, 1]; once alpha_bar exceeds 0.25, each step keeps (1 + gain) times the predicted noise, which gives more texture. 0.05
            to 0.25 is useful. DDIM only (the embedded model's scheduler), and not with "inverted", which assumes the plain step. None
            leaves it to the model, see ``DiffusionLocalInpaint``.
        coherence_mm: volumes only: low frequencies of the noise are the same over about this length of the patient, in the plane and
            across slices, high ones independent; in millimetres, so that the distance of the slices does not matter. 0 is off.
        acquisition: a last step after decoding adds the noise that painted pixels lack: with the level and the spectrum of the surround,
            both measured in its homogeneous parts (CT, MRI). None leaves it to the model.

    Raises:
        ValueError: an option out of range.

    >>> Noise(gain=0.1)  # more texture
    Noise(gain=0.1)
    >>> Noise(rho=1.0)  # neighbouring slices share their noise
    Noise(rho=1.0)
    >>> Noise(coherence_mm=12, acquisition=True)  # a lesion of a volume that holds in three planes
    Noise(coherence_mm=12, acquisition=True)
    """

    rho: float = 0.0
    source: str = "random"
    scale: float = 0.0
    gain: float | None = None
    coherence_mm: float = 0.0
    acquisition: bool | None = None

    def __post_init__(self) -> None:
        _check(0.0 <= self.rho <= 1.0, f"noise rho must be in [0, 1], got {self.rho}")
        _check(self.source in NOISE_SOURCES, f"noise source must be one of {', '.join(NOISE_SOURCES)}, got {self.source!r}")
        _check(0.0 <= self.scale <= 1.0, f"noise scale must be in [0, 1], got {self.scale}")
        gain = 0.0 if self.gain is None else self.gain
        _check(0.0 <= gain <= 1.0, f"noise gain must be in [0, 1], got {gain}")
        _check(self.coherence_mm >= 0, f"noise coherence_mm must be >= 0 mm, got {self.coherence_mm}")
        _check(self.coherence_mm == 0 or self.rho == 0, f"set noise rho or coherence_mm, not both, got {self.rho} and {self.coherence_mm}")
        _check(gain == 0 or self.source == "random", f"noise gain {gain} needs source 'random', got {self.source!r}")


@option_group
@dataclass(frozen=True)
class SoftEdge:
    """The soft edge between repainted and original pixels.

    Args:
        width_px_at_512: standard deviation in pixels when the region is 512 pixels wide; 0 is a hard edge. Pixels larger than 1 mm count
            as 1 mm, so that a coarse grid does not widen the edge: at 3 mm it has a third of the pixels.
        width_mm: the same width in millimetres (2-D images without an affine: pixels); replaces ``width_px_at_512`` when it is given.
        mode: "grow", "inner" or "centre", see ``monai_diffaug.masks.soft_edge.soft_mask``.

    Raises:
        ValueError: an option out of range.

    >>> SoftEdge(width_px_at_512=8).width_px(side=128, pixel_mm=0.5), SoftEdge(width_mm=2).width_px(side=128, pixel_mm=0.5)
    (2.0, 4.0)
    """

    width_px_at_512: float = 4.0
    width_mm: float | None = None
    mode: str = "grow"

    def __post_init__(self) -> None:
        _check(self.width_px_at_512 >= 0, f"width_px_at_512 must be >= 0 pixels, got {self.width_px_at_512}")
        _check(self.width_mm is None or self.width_mm >= 0, f"width_mm must be >= 0 mm, got {self.width_mm}")
        _check(self.mode in SOFT_MODES, f"soft edge mode must be one of {', '.join(SOFT_MODES)}, got {self.mode!r}")

    @property
    def hard(self) -> bool:
        """The region has no soft edge."""
        return (self.width_px_at_512 if self.width_mm is None else self.width_mm) == 0

    def width_px(self, side: int, pixel_mm: float) -> float:
        """Standard deviation in pixels of a slice, of which the model sees a square of ``side`` pixels."""
        if self.width_mm is not None:
            return self.width_mm / pixel_mm
        return self.width_px_at_512 * side / SOFT_WIDTH_REFERENCE_PX / max(pixel_mm, LARGEST_REFERENCE_MM)

    def least_side(self, extent: int, pixel_mm: float) -> float:
        """Side in pixels of the smallest square that holds a mask of ``extent`` pixels, its soft edge and a rim of the tissue around."""
        if self.mode == "inner":
            return float(extent)
        if self.width_mm is not None:
            return extent + 2 * EDGE_REACH * self.width_mm / pixel_mm
        edge_share = 2 * EDGE_REACH * self.width_px_at_512 / SOFT_WIDTH_REFERENCE_PX
        return extent / max(1 - edge_share, 0.01)


@option_group
@dataclass(frozen=True)
class Region:
    """The part of a slice that the model sees.

    Args:
        context: side of the square around the mask, or around each lesion of several far apart, as a multiple of the mask's extent.
            The square is resampled to the model's size.
        least_context: where the square would be larger than the model's size (in pixels), its side becomes this multiple of the mask's
            extent, but not less than the model's size: less context, and less texture lost by resampling. None keeps ``context``, as
            does a value above it.
        resample: "bicubic" or "bilinear" (both antialiased): how the square of the image and the repainted patch are resampled. Bicubic
            keeps more of the fine texture; masks are always resampled bilinearly.
        whole_slice: show the model whole slices at their own resolution instead.

    Raises:
        ValueError: ``context`` or ``least_context`` is less than 1, or ``resample`` unknown.

    >>> Region(context=3)  # more of the surround
    Region(context=3)
    >>> Region(whole_slice=True)
    Region(whole_slice=True)
    """

    context: float = 2.0
    whole_slice: bool = False
    least_context: float | None = 1.5
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        _check(self.context >= 1.0, f"region context must be >= 1, got {self.context}")
        in_range = self.least_context is None or self.least_context >= 1.0
        _check(in_range, f"region least_context must be None or >= 1, got {self.least_context}")
        _check(self.resample in RESAMPLINGS, f"region resample must be one of {', '.join(RESAMPLINGS)}, got {self.resample!r}")


@option_group
@dataclass(frozen=True)
class Run:
    """How the model runs.

    Args:
        dtype: floating type of the weights, "float32", "bfloat16" or "float16".
        compile: send the model's repeated blocks through ``torch.compile`` (needs a C++ compiler; the first calls are slow), and on a
            GPU replay the UNet as a CUDA graph, one per shape.
        slice_batch_size: slices per model call; None takes what fits into the GPU's memory or a CPU's cache. Halved when memory runs
            out, with the same result.

    Raises:
        ValueError: ``slice_batch_size`` is less than 1.

    >>> Run(dtype="bfloat16", slice_batch_size=16)
    Run(dtype='bfloat16', slice_batch_size=16)
    """

    dtype: str = "float32"
    compile: bool = False
    slice_batch_size: int | None = None

    def __post_init__(self) -> None:
        _check(self.slice_batch_size is None or self.slice_batch_size >= 1, f"slice_batch_size must be >= 1, got {self.slice_batch_size}")


@option_group
@dataclass(frozen=True)
class ControlNet:
    """A ControlNet that keeps edges (EMIT-Diff).

    In a Bundle write ``_target_: monai_diffaug.ControlNet``: the short name means a network of MONAI.

    Args:
        source: "tiny" (embedded), a folder, a hub id or a live diffusers ``ControlNetModel``.
        scale: its strength; 0 is the plain model.
        key: key of the control image in the dictionary form, as ``EdgeMapd`` writes it; None draws it from image and mask.
        inside: a drawn control image shows the edges inside the mask too, else only the mask's outline.

    Raises:
        ValueError: ``scale`` is negative.

    >>> ControlNet("my_controlnet", key="edges")
    ControlNet(source='my_controlnet', key='edges')
    """

    source: Any = "tiny"
    scale: float = 1.0
    key: str | None = None
    inside: bool = True

    def __post_init__(self) -> None:
        _check(self.scale >= 0, f"ControlNet scale must be >= 0, got {self.scale}")


@option_group
@dataclass(frozen=True)
class SemanticController:
    """A Medical Semantic Controller that predicts the features behind the mask (MedSoft-Diffusion).

    Args:
        source: "tiny" (embedded), a folder or a live ``SemanticModel``.

    >>> InpaintOptions(control=SemanticController("my_controller"))
    InpaintOptions(control=SemanticController(source='my_controller'))
    """

    source: Any = "tiny"


@option_group
@dataclass(frozen=True)
class InpaintOptions:
    """The options of ``DiffusionLocalInpaint`` and ``DiffusionLocalInpaintd`` that are rarely set.

    Args:
        noise: the initial noise.
        soft_edge: the edge between repainted and original pixels.
        region: the part of a slice that the model sees.
        contrast: what an edit must reach to count as painted.
        channels: how images with several channels that are no colours are repainted.
        control: a ``ControlNet`` or a ``SemanticController`` that steers the UNet; None is the plain model.
        run: floating type, compilation and slices per model call.
        guidance_interval: share of the steps, from the noisiest on, with guidance; a step without guidance costs half. None leaves it to
            the model, see ``DiffusionLocalInpaint``.
        joined_mm: volumes only: after decoding, structures of painted slices that are longer than this become a running mean across the
            slices, fine texture remains; exact outside the mask. 0 is off.
        record_postfix: the dictionary form writes the record ``{key}_{record_postfix}``; a second edit of the same image needs another.

    Raises:
        TypeError: a group is of another class.
        ValueError: ``guidance_interval`` is no interval in [0, 1].

    >>> from monai_diffaug import DiffusionLocalInpaintd
    >>> DiffusionLocalInpaintd("image", options=InpaintOptions(noise=Noise(rho=0.5), soft_edge=SoftEdge(width_mm=2)))
    DiffusionLocalInpaintd(keys='image', options=InpaintOptions(noise=Noise(rho=0.5), soft_edge=SoftEdge(width_mm=2)))
    """

    noise: Noise = field(default_factory=Noise)
    soft_edge: SoftEdge = field(default_factory=SoftEdge)
    region: Region = field(default_factory=Region)
    contrast: Contrast = field(default_factory=Contrast)
    channels: Channels = field(default_factory=Channels)
    control: ControlNet | SemanticController | None = None
    run: Run = field(default_factory=Run)
    guidance_interval: tuple[float, float] | None = None
    joined_mm: float = 0.0
    record_postfix: str = RECORD_POSTFIX

    def __post_init__(self) -> None:
        check_group("noise", self.noise, Noise)
        check_group("soft_edge", self.soft_edge, SoftEdge)
        check_group("region", self.region, Region)
        check_group("contrast", self.contrast, Contrast)
        check_group("channels", self.channels, Channels)
        check_group("control", self.control, ControlNet, SemanticController, type(None))
        check_group("run", self.run, Run)
        _check(self.joined_mm >= 0, f"joined_mm must be >= 0 mm, got {self.joined_mm}")
        if self.guidance_interval is None:
            return
        _check(len(self.guidance_interval) == 2, f"guidance_interval must be (begin, end), got {self.guidance_interval}")
        begin, end = map(float, self.guidance_interval)
        _check(0.0 <= begin < end <= 1.0, f"guidance_interval needs 0 <= begin < end <= 1, got {self.guidance_interval}")
        object.__setattr__(self, "guidance_interval", (begin, end))

    @property
    def control_key(self) -> str | None:
        """Key of the control image in the dictionary form."""
        return self.control.key if isinstance(self.control, ControlNet) else None

    def with_spec(self) -> InpaintOptions:
        """The same options, with the source of ``control`` as a spec: they hold no weights."""
        if self.control is None:
            return self
        kind = "controlnet" if isinstance(self.control, ControlNet) else "semantic_controller"
        return replace(self, control=replace(self.control, source=spec_of(kind, self.control.source, self.run.dtype)))


@dataclass(frozen=True)
class RepaintSettings:
    """All options of one edit; ``DiffusionLocalInpaint`` documents each.

    Raises:
        ValueError: an option out of range.
    """

    strength: float = 1.0
    num_inference_steps: int = 12
    guidance_scale: float | None = None
    negative_prompt: str = ""
    window: Window | None = None
    plane: str = "axial"
    options: InpaintOptions = field(default_factory=InpaintOptions)

    def __post_init__(self) -> None:
        _check(0.0 < self.strength <= 1.0, f"strength must be in (0, 1], got {self.strength}")
        _check(self.num_inference_steps >= 1, f"num_inference_steps must be >= 1, got {self.num_inference_steps}")
        _check(self.plane in PLANES, f"plane must be one of {', '.join(PLANES)}, got {self.plane!r}")

    @property
    def guided(self) -> bool:
        """Classifier-free guidance is on, or may be: two UNet evaluations per step."""
        return self.guidance_scale is None or self.guidance_scale > 1.0


def check_group(name: str, value: Any, *classes: type) -> None:
    """Check that an option group is an instance of its class.

    Raises:
        TypeError: it is not, e.g. a mapping from a config without ``_target_``.
    """
    if not isinstance(value, classes):
        names = " or ".join("None" if each is type(None) else f"{each.__name__}(...)" for each in classes)
        raise TypeError(f"{name} must be {names}, got {value!r}; in a config write _target_: monai_diffaug.{classes[0].__name__}")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
