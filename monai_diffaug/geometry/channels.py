"""Channels of an image: grey and colour are shown as one picture, other co-registered channels one by one, each in its own window."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_diffaug.geometry.window import Window, window_of

__all__ = ["MANY_CHANNELS", "is_one_picture", "merged_channels", "shown", "varied_channels", "windows_of"]

MANY_CHANNELS = tuple(range(1, 9))
MOST_RANGES_APART = 200.0  # of the channels of a colour image; 101 fundus photographs reach 24, polyps and findings 1.5


def is_one_picture(volume: Tensor, window: tuple[float, float] | Window | None = None) -> bool:
    """Whether the channels of a plain, finite image (C, H, W[, D]) are one grey or colour picture with one window.

    One channel is grey. Three channels are red, green and blue if they are uint8, if one window was given for them, or if their ranges are
    at most 200 times apart; a constant channel is accepted. All others are co-registered images of their own.

    >>> [is_one_picture(torch.rand(channels, 8, 8)) for channels in (1, 2, 3, 4)]
    [True, False, True, False]
    >>> is_one_picture(torch.rand(3, 8, 8) * torch.tensor([1.0, 1.0, 900.0])[:, None, None])
    False
    """
    if volume.shape[0] != 3 or volume.dtype == torch.uint8 or window is not None:
        return volume.shape[0] in (1, 3)
    ends = [torch.aminmax(channel.float()) for channel in volume]  # one channel at a time: no float copy of the whole volume
    ranges = [float(highest - lowest) for lowest, highest in ends if highest > lowest]
    return not ranges or max(ranges) <= MOST_RANGES_APART * min(ranges)


def varied_channels(volume: Tensor) -> tuple[int, ...]:
    """Indices of the channels that are not constant, as that of a contrast that was not recorded is; all if none varies.

    >>> varied_channels(torch.stack([torch.zeros(4, 4), torch.eye(4)]))
    (1,)
    """
    varied = tuple(i for i, (lowest, highest) in enumerate(map(torch.aminmax, volume)) if highest > lowest)
    return varied or tuple(range(len(volume)))


def windows_of(volume: Tensor, window: tuple[float, float] | None = None, prompt: str = "") -> tuple[Window, ...]:
    """The window of each channel of an image whose channels are shown one by one; the given one for all, else see ``window_of``.

    >>> windows_of(torch.stack([torch.linspace(0, top, 1001) for top in (1.0, 1000.0)])[:, None])[1].high
    995.0
    """
    return tuple(window_of(channel[None], window, prompt) for channel in volume)


def shown(volume: Tensor, window: tuple[float, float] | None = None) -> Tensor:
    """The image in the model's range [-1, 1], float32, one window for a picture, else one per channel.

    Constant channels next to others are -1.

    >>> shown(torch.stack([torch.linspace(0, top, 1001) for top in (1.0, 1000.0)])[:, None])[:, 0, -1].tolist()
    [1.0, 1.0]
    """
    if is_one_picture(volume, window):
        return window_of(volume, window).to_model(volume)
    picture = torch.full(volume.shape, -1.0, dtype=torch.float32, device=volume.device)
    for index in varied_channels(volume):
        picture[index] = window_of(volume[index][None], window).to_model(volume[index])
    return picture


def merged_channels(volume: Tensor, window: tuple[float, float] | None = None) -> Tensor:
    """A grey or colour image as it is; other channels as one, their mean.

    Each channel is seen in its window; the mean is in the unit of the given window, else in [-1, 1]. For models that see one picture, such
    as MedSAM.

    >>> merged_channels(torch.rand(4, 8, 8)).shape, merged_channels(torch.rand(3, 8, 8)).shape
    (torch.Size([1, 8, 8]), torch.Size([3, 8, 8]))
    """
    if is_one_picture(volume, window):
        return volume
    mean = shown(volume, window).mean(0, keepdim=True)
    return mean if window is None else Window(float(window[0]), float(window[1])).to_image(mean)
