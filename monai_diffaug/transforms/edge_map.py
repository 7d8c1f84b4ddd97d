"""``EdgeMap`` and ``EdgeMapd``: the control image of a ControlNet, made of the image's edges and the mask's outline."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, ensure_tuple
from torch import Tensor, nn

from monai_diffaug.edit.signature import Described
from monai_diffaug.geometry.channels import merged_channels
from monai_diffaug.geometry.grids import affine_of, check_finite, check_grid, plain, required
from monai_diffaug.geometry.slices import PLANES, from_slices, slice_plane, to_slices
from monai_diffaug.geometry.window import window_of
from monai_diffaug.masks.edges import EdgeDetector, canny, control_image, scharr
from monai_diffaug.models.registry import ModelSpec, live_object, shared_model, spec_of

__all__ = ["EdgeMap", "EdgeMapD", "EdgeMapDict", "EdgeMapd"]

METHODS = ("canny", "scharr")
TOLERANCE = 1e-3  # beyond [0, 1]: rounding of a detector in half precision


class EdgeMap(Transform, Described):
    """Edges of an image, slice by slice, with the outline of a mask (EMIT-Diff, Zhang et al., TMI 2024).

    clip(edges(image) + outline(mask), 0, 1). Deterministic, so it can be cached.

    Args:
        method: "canny" (thin lines), "scharr" (gradual edges), or a detector such as HED: a function or ``nn.Module``
            (S, 3, h, w) in [0, 1] -> (S, 1, h, w) in [0, 1]. A module is stored in the model table of the process, not in the transform.
            HED's networks return several maps or logits: wrap them, e.g. ``lambda x: hed(x)[-1].sigmoid()``.
        sigma_px: blur before the gradient, standard deviation in pixels; default 1.5 for Canny, 1 for Scharr.
        low: Canny's lower threshold, unnormalised Sobel gradient of the windowed image in [0, 1].
        high: Canny's upper threshold.
        keep_inside: False drops the image's edges inside the mask, so that only the outline remains there.
        window: intensity range for the edge detector, in the unit of the image; None takes the default (``window_of``) of the image
            (0 to 255 for uint8).
        plane: anatomical plane of the slices of a 3-D image.

    Raises:
        ValueError: an option out of range.

    >>> import torch
    >>> image, mask = torch.zeros(1, 32, 32), torch.zeros(1, 32, 32)
    >>> image[:, :, 16:], mask[:, 8:16, 2:8] = 1, 1
    >>> control = EdgeMap(window=(0, 1))(image, mask)
    >>> control.shape, control[0, 24].nonzero().flatten().tolist(), float(control[0, 8, 4])
    (torch.Size([1, 32, 32]), [15], 1.0)
    """

    def __init__(
        self,
        method: str | EdgeDetector = "canny",
        *,
        sigma_px: float | None = None,
        low: float = 0.1,
        high: float = 0.2,
        keep_inside: bool = True,
        window: Sequence[float] | None = None,
        plane: str = "axial",
    ) -> None:
        if isinstance(method, str) and method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)} or a callable, got {method!r}")
        if not isinstance(method, str) and not callable(method):
            raise ValueError(f"method must be one of {', '.join(METHODS)} or a callable, got a {type(method).__name__}")
        if sigma_px is not None and sigma_px < 0:
            raise ValueError(f"sigma_px must be >= 0, got {sigma_px}")
        if not 0 <= low <= high:
            raise ValueError(f"the thresholds need 0 <= low <= high, got low {low} and high {high}")
        if window is not None and len(window) != 2:
            raise ValueError(f"window must be (low, high), got {window}")
        if plane not in PLANES:
            raise ValueError(f"plane must be one of {', '.join(PLANES)}, got {plane!r}")
        self.method: str | EdgeDetector | ModelSpec = spec_of("edges", method) if isinstance(method, nn.Module) else method
        self.sigma_px = sigma_px
        self.low = low
        self.high = high
        self.keep_inside = keep_inside
        self.window = None if window is None else (float(window[0]), float(window[1]))
        self.plane = plane

    def __call__(self, img: NdarrayOrTensor, mask: NdarrayOrTensor) -> NdarrayOrTensor:
        """The control image.

        Args:
            img: (C, H, W) or (C, H, W, D), any intensity unit.
            mask: (1, H, W[, D]) class ids on the same grid; above 0 is inside.

        Returns:
            (1, H, W[, D]) float32 in [0, 1] in the image's container, with its meta data.

        Raises:
            GridMismatchError: the mask is on another grid.
            ValueError: non-finite voxels, or neither 2 nor 3 spatial dimensions.
        """
        check_grid("mask", mask, img)
        volume = plain(img)
        ids = plain(mask).to(volume.device)
        region = ids * (ids > 0)  # -1 often means unknown: no outline
        check_finite(volume)
        plane = slice_plane(affine_of(img), self.plane, volume.ndim - 1)
        seen = merged_channels(volume, self.window)
        windowed = (window_of(seen, self.window).to_model(seen) + 1) / 2
        with torch.no_grad():
            control = control_image(
                to_slices(windowed, plane), to_slices(region, plane), self._detector(volume.device), keep_inside=self.keep_inside
            )
        converted: NdarrayOrTensor = convert_to_dst_type(from_slices(control, plane).contiguous(), img, dtype=torch.float32)[0]
        return converted

    def _detector(self, device: torch.device) -> EdgeDetector:
        if not isinstance(self.method, str):
            return partial(_detect_with, self.method, device)
        if self.method == "canny":
            return partial(canny, sigma_px=1.5 if self.sigma_px is None else self.sigma_px, low=self.low, high=self.high)
        return partial(scharr, sigma_px=1.0 if self.sigma_px is None else self.sigma_px)


class EdgeMapd(MapTransform, Described):
    """Dictionary form of ``EdgeMap``.

    Args:
        keys: images, each (C, H, W[, D]).
        mask_key: mask or label whose outline is drawn into the control image.
        output_key: key of the control image, one for each of ``keys``.
        method: "canny", "scharr" or a detector.
        sigma_px: blur before the gradient in pixels.
        low: Canny's lower threshold.
        high: Canny's upper threshold.
        keep_inside: False drops the image's edges inside the mask.
        window: intensity range for the edge detector.
        plane: anatomical plane of the slices of a 3-D image.
        allow_missing_keys: skip images that a sample lacks.

    Raises:
        ValueError: not one output key for each key.
        KeyError: the sample has no mask.

    >>> import torch
    >>> sample = {"image": torch.rand(1, 32, 32), "label": torch.zeros(1, 32, 32)}
    >>> sorted(EdgeMapd("image", mask_key="label", output_key="edges")(sample))
    ['edges', 'image', 'label']
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        mask_key: str = "mask",
        output_key: str | Sequence[str] = "edges",
        method: str | EdgeDetector = "canny",
        sigma_px: float | None = None,
        low: float = 0.1,
        high: float = 0.2,
        keep_inside: bool = True,
        window: Sequence[float] | None = None,
        plane: str = "axial",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.output_keys = ensure_tuple(output_key)
        if len(self.output_keys) != len(self.keys):
            raise ValueError(f"output_key must name one key for each of {self.keys}, got {self.output_keys}")
        self.mask_key = mask_key
        self.draw = EdgeMap(method, sigma_px=sigma_px, low=low, high=high, keep_inside=keep_inside, window=window, plane=plane)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, output_key in self.key_iterator(d, self.output_keys):
            d[output_key] = self.draw(d[key], required(d, self.mask_key, "name the key that holds the mask"))
        return d


EdgeMapD = EdgeMapDict = EdgeMapd


def _detect_with(method: EdgeDetector | ModelSpec, device: torch.device, image: Tensor) -> Tensor:
    """Call the user's detector with three channels and check its result."""
    detect = shared_model(method, device, _load_detector) if isinstance(method, ModelSpec) else method
    edges: Any = detect(image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image)
    expected = (image.shape[0], 1, *image.shape[2:])
    if not isinstance(edges, Tensor):
        raise ValueError(
            f"the edge detector returned a {type(edges).__name__}; expected a tensor {expected} in [0, 1]: wrap it in a function"
        )
    if tuple(edges.shape) != expected:
        raise ValueError(
            f"the edge detector returned {tuple(edges.shape)} for {image.shape[0]} slices of {tuple(image.shape[2:])}; "
            f"expected {expected} in [0, 1]"
        )
    low, high = float(edges.min()), float(edges.max())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # NaN fails too
        raise ValueError(
            f"the edge detector returned values from {low:g} to {high:g}; expected [0, 1]: wrap logits in a sigmoid, divide grey values"
        )
    return edges.to(device)


def _load_detector(spec: ModelSpec, device: torch.device) -> Any:
    detector: Any = live_object(spec)
    return detector.to(device).eval().requires_grad_(False)
