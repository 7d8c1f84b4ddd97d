"""The edits that are timed, equal in all arms (volumes and settings), and the number of measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.edit.options import InpaintOptions, Noise, Region, Run, SoftEdge
from monai_diffaug.geometry.slices import slice_plane, to_slices, touched
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

__all__ = ["FULL", "GREY", "QUICK", "Amount", "EditSettings", "Volume", "dtype_name", "make_volume"]

GREY = (0.0, 255.0)  # the window of the volumes


@dataclass(frozen=True)
class Volume:
    """One sample: image and mask in {0, 1} (1, H, W, D), both as slices (D, 1, H, W), and the indices of the slices with a mask.

    The grey values are integers from 0 to 255, so that the input of the 8-bit rival is exact.
    """

    image: Tensor
    mask: Tensor
    slices: Tensor
    masks: Tensor
    indices: list[int]


def make_volume(size_px: int, depth: int, *, empty_fraction: float = 0.0, cell_px: int = 4, lesion: float = 0.4, seed: int = 0) -> Volume:
    """A speckled volume with a lesion in its middle slices.

    The lesion is an ellipse of whole cells of the latents' grid, of ``cell_px`` image pixels. There downsampling of the mask by nearest
    neighbour (diffusers) and by maximum (this package) are equal, so that the results can be compared. ``lesion`` is its diameter
    relative to the side ``size_px`` of a slice, ``empty_fraction`` the share of the slices without a mask.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(depth, 1, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, (size_px, size_px), mode="bicubic", align_corners=False)
    speckle = torch.rand(depth, 1, size_px, size_px, generator=generator)
    image = (255 * (0.7 * smooth + 0.3 * speckle)).round().clamp(0, 255).permute(1, 2, 3, 0).contiguous()
    cells = -(-size_px // cell_px)
    axis = (torch.arange(cells) + 0.5) / cells - 0.5
    ellipse = ((axis[:, None] / lesion) ** 2 + (axis[None, :] / (0.8 * lesion)) ** 2 <= 0.25).float()
    outline = ellipse.repeat_interleave(cell_px, 0).repeat_interleave(cell_px, 1)[:size_px, :size_px]
    filled = depth - round(empty_fraction * depth)
    first = (depth - filled) // 2
    mask = torch.zeros_like(image)
    mask[..., first : first + filled] = outline[None, :, :, None]
    plane = slice_plane(None, "axial", 3)
    masks = to_slices(mask, plane)
    return Volume(image, mask, to_slices(image, plane).contiguous(), masks.contiguous(), touched(masks))


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a torch type without the module, e.g. "float32"."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class EditSettings:
    """One edit that diffusers' pipeline can also do: whole slices, a hard mask, DDIM.

    ``batch_size`` is the number of slices per model call; None is the transform's default.
    """

    steps: int = 12
    guidance_scale: float = 3.0
    prompt: str = "ultrasound of breast, benign mass, hypoechoic"
    seed: int = 20250101
    batch_size: int | None = None

    @property
    def guided(self) -> bool:
        """Whether a step has two UNet evaluations."""
        return self.guidance_scale > 1

    def transform(self, model: Inpainter, *, whole_slice: bool = True) -> DiffusionLocalInpaint:
        """This package's arm."""
        return DiffusionLocalInpaint(
            model,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            window=GREY,
            options=InpaintOptions(
                noise=Noise(gain=0.0, acquisition=False),
                guidance_interval=(0.0, 1.0),
                soft_edge=SoftEdge(width_px_at_512=0.0),
                run=Run(slice_batch_size=self.batch_size),
                region=Region(whole_slice=whole_slice),
            ),
        )

    def edit(self, model: Inpainter, volume: Volume, *, whole_slice: bool = True) -> Callable[[], object]:
        """A call that edits a volume with this package."""
        transform = self.transform(model, whole_slice=whole_slice)
        return partial(transform.apply, volume.image, volume.mask, self.prompt, seed=self.seed)


@dataclass(frozen=True)
class Amount:
    """Number of measurements.

    Attributes:
        rounds: interleaved rounds; 7 or more for a 95 % interval.
        volumes: (side of a slice in pixels, number of slices) of each volume.
        steps: of the sampler; each of ``other_steps`` adds a row for the first volume.
        larger_models: the 25 M UNet, SAM's ViT-B, and on a GPU the size of Stable Diffusion 1.5.
        images: of the quality table.
        reference_steps: of the edits with which the quality table compares.
    """

    rounds: int = 7
    volumes: tuple[tuple[int, int], ...] = ((64, 16), (128, 8))
    steps: int = 8
    other_steps: tuple[int, ...] = (4,)
    larger_models: bool = True
    images: int = 16
    reference_steps: int = 50


FULL = Amount()
QUICK = Amount(rounds=3, volumes=((64, 16),), steps=4, other_steps=(), larger_models=False, images=3, reference_steps=24)
