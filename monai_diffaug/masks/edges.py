"""Edge maps without a network (Canny, Scharr) for stacks of slices, and the control image from edges and mask outline."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["EdgeDetector", "canny", "control_image", "outline", "scharr"]

EdgeDetector = Callable[[Tensor], Tensor]
"""(B, C, h, w) in [0, 1] -> (B, 1, h, w) in [0, 1]."""

SOBEL = ((-1.0, 0.0, 1.0), (1.0, 2.0, 1.0))  # derivative, smoothing; not normalised, as in scikit-image's Canny
SCHARR = ((-0.5, 0.0, 0.5), (3 / 16, 10 / 16, 3 / 16))  # normalised: the result is the change per pixel
SCHARR_GAIN = 8.0  # an edge of half the intensity range, blurred by one pixel, has the strength 1
DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1))  # (rows, columns) to the neighbour across an edge, by octant of the gradient


def canny(image: Tensor, *, sigma_px: float = 1.5, low: float = 0.1, high: float = 0.2) -> Tensor:
    """Thin edges by Canny (1986, "A computational approach to edge detection"): blur, gradient, non-maximum suppression, hysteresis.

    Args:
        image: (B, C, h, w) in [0, 1]; channels are averaged.
        sigma_px: standard deviation of the Gaussian blur in pixels.
        low: least gradient of a pixel of an edge; unnormalised Sobel, as in ``skimage.feature.canny``.
        high: least gradient of at least one pixel of each edge.

    Returns:
        (B, 1, h, w) float32 in {0, 1}.

    >>> image = torch.zeros(1, 1, 16, 16)
    >>> image[..., 8:] = 1
    >>> canny(image)[0, 0, 4].nonzero().flatten().tolist()
    [7]
    """
    dy, dx = _gradient(_blurred(image, sigma_px), SOBEL)
    magnitude = torch.hypot(dy, dx)
    thin = (magnitude >= low) & _is_ridge(magnitude, dy, dx)
    return _hysteresis(thin, thin & (magnitude >= high)).float()


def scharr(image: Tensor, *, sigma_px: float = 1.0, gain: float = SCHARR_GAIN) -> Tensor:
    """Gradual edges: magnitude of the Scharr gradient (Scharr 2000) times ``gain``, clipped.

    Args:
        image: (B, C, h, w) in [0, 1]; channels are averaged.
        sigma_px: standard deviation of the Gaussian blur in pixels.
        gain: edge strength of a change of 1 per pixel.

    Returns:
        (B, 1, h, w) float32 in [0, 1].

    >>> ramp = torch.arange(8.0).expand(1, 1, 8, 8) / 10
    >>> round(float(scharr(ramp, sigma_px=0, gain=1.0)[0, 0, 4, 4]), 6)
    0.1
    """
    dy, dx = _gradient(_blurred(image, sigma_px), SCHARR)
    return (torch.hypot(dy, dx) * gain).clamp(0, 1)


def outline(mask: Tensor) -> Tensor:
    """Outline of each class, one pixel wide, on its inner side; the image's border is not an outline.

    Args:
        mask: (B, 1, h, w) class ids, 0 is background.

    Returns:
        (B, 1, h, w) float32 in {0, 1}; a region of one pixel is its own outline.

    >>> mask = torch.zeros(1, 1, 5, 5)
    >>> mask[..., 1:4, 1:4] = 2
    >>> int(outline(mask).sum())
    8
    """
    ids = mask.float()
    differs = F.max_pool2d(ids, 3, 1, 1) != -F.max_pool2d(-ids, 3, 1, 1)
    return ((ids != 0) & differs).float()


def control_image(image: Tensor, mask: Tensor, detect: EdgeDetector = canny, *, keep_inside: bool = True) -> Tensor:
    """clip(edges(image) + outline(mask), 0, 1): the control image of EMIT-Diff (Zhang et al., TMI 2024).

    Args:
        image: (B, C, h, w) in [0, 1].
        mask: (B, 1, h, w) class ids; their outline is always drawn.
        detect: ``canny``, ``scharr`` or any detector with the same interface.
        keep_inside: False removes the image's edges inside the mask, so that only its outline is drawn there.

    Returns:
        (B, 1, h, w) float32 in [0, 1].

    >>> mask = torch.zeros(1, 1, 8, 8)
    >>> mask[..., 2:6, 2:6] = 1
    >>> torch.equal(control_image(torch.zeros(1, 1, 8, 8), mask), outline(mask))
    True
    """
    edges = detect(image).float()
    if not keep_inside:
        edges = edges * (mask.float() == 0)
    return (edges + outline(mask)).clamp(0, 1)


def _blurred(image: Tensor, sigma_px: float) -> Tensor:
    """Grey (B, 1, h, w) float32, blurred; border pixels are repeated, so that the border is not an edge."""
    from monai.networks.layers import gaussian_1d, separable_filtering

    grey = image.float().mean(1, keepdim=True)
    if sigma_px <= 0:
        return grey
    kernel = gaussian_1d(torch.tensor(float(sigma_px), dtype=grey.dtype, device="cpu"), truncated=4.0, normalize=True)
    blurred: Tensor = separable_filtering(grey, [kernel, kernel], mode="replicate")
    return blurred


def _gradient(image: Tensor, kernels: tuple[tuple[float, ...], tuple[float, ...]]) -> tuple[Tensor, Tensor]:
    """Derivative along rows (downwards) and columns (to the right) of (B, 1, h, w)."""
    derivative, smoothing = (torch.tensor(k, dtype=image.dtype, device=image.device) for k in kernels)
    across = torch.outer(smoothing, derivative)
    gradient = F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), torch.stack([across.T, across])[:, None])
    return gradient[:, :1], gradient[:, 1:]


def _is_ridge(magnitude: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """True for pixels whose gradient is not smaller than that of the neighbour on one side of the edge, and larger than on the other."""
    octant = torch.round(torch.atan2(dy, dx) / (math.pi / 4)).long() % len(DIRECTIONS)
    height, width = magnitude.shape[-2:]
    padded = F.pad(magnitude, (1, 1, 1, 1))
    ridge = torch.zeros_like(magnitude, dtype=torch.bool)
    for index, (rows, columns) in enumerate(DIRECTIONS):
        ahead = padded[..., 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]
        behind = padded[..., 1 - rows : 1 - rows + height, 1 - columns : 1 - columns + width]
        ridge |= (octant == index) & (magnitude >= ahead) & (magnitude > behind)
    return ridge


def _hysteresis(weak: Tensor, strong: Tensor) -> Tensor:
    """The 8-connected components of ``weak`` (B, 1, h, w) with at least one pixel of ``strong``."""
    import numpy as np
    from scipy.ndimage import label

    in_slice = np.zeros((3, 3, 3), dtype=bool)
    in_slice[1] = True  # slices are not connected with each other
    parts, count = label(weak[:, 0].cpu().numpy(), structure=in_slice)
    is_edge = np.zeros(count + 1, dtype=bool)
    is_edge[np.unique(parts[strong[:, 0].cpu().numpy()])] = True
    is_edge[0] = False
    return torch.from_numpy(is_edge[parts]).to(weak.device)[:, None]
