"""Open and record: the request for one edit becomes a checked stack of slices, and its outcome an image, a label and a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from monai.config import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from monai_diffaug.edit.contrast import Contrast, lesion_contrast
from monai_diffaug.edit.decode import Outcome
from monai_diffaug.edit.denoise import Candidate
from monai_diffaug.edit.options import ControlNet, RepaintSettings
from monai_diffaug.edit.record import EMPTY_BECAUSE, DiffAugRecord
from monai_diffaug.edit.stack import ShownChannel, Stack, open_stack
from monai_diffaug.geometry.channels import MANY_CHANNELS, is_one_picture, varied_channels, windows_of
from monai_diffaug.geometry.grids import affine_of, check_finite, check_grid, check_image, like, plain
from monai_diffaug.geometry.picture_plane import plane_of
from monai_diffaug.geometry.slices import longest_side_mm, pixel_mm, slab_of, slice_mm
from monai_diffaug.geometry.window import Window, warn_if_too_wide, window_of
from monai_diffaug.masks.labels import LabelValue, check_painted_label, paint_label
from monai_diffaug.sampling.prompt_mix import prompt_mix_text, prompt_pairs

__all__ = ["Edit", "PendingEdit", "Prompt", "Request", "finish_request", "open_request", "prompt_text"]

EVERY_CONTRAST = Contrast()
Prompt = str | Sequence[tuple[float, str]]
"""One text, or (weight, text) pairs whose text states are averaged."""


class Request(NamedTuple):
    """The arguments of one edit.

    Attributes:
        image: (C, H, W[, D]), C 1 to 8.
        mask: (1, H, W[, D]), non-zero means repaint.
        prompt: text, or a mix of texts.
        label: (1, H, W[, D]) class ids, or None.
        control: (1 or 3, H, W[, D]) in [0, 1], the image that the ControlNet gets, or None.
        seed: of all noise, in [0, 2**32).
    """

    image: NdarrayOrTensor
    mask: NdarrayOrTensor
    prompt: Prompt
    label: NdarrayOrTensor | None
    control: NdarrayOrTensor | None
    seed: int


class PendingEdit(NamedTuple):
    """A request that is repainted in latent space; ``DiffusionLocalInpaint.finish_batch`` makes the ``Edit``.

    Attributes:
        request: its arguments.
        outcome: the candidate, not decoded yet; or the reason why there is none.
    """

    request: Request
    outcome: Candidate | Outcome


class Edit(NamedTuple):
    """The result of one edit.

    Attributes:
        image: the edited image, or the input itself when nothing was applied.
        label: the label with the edit painted in; None when there was none.
        record: a ``DiffAugRecord`` as a plain dictionary.

    >>> import torch
    >>> from monai_diffaug import DiffusionLocalInpaint
    >>> image, mask = torch.rand(1, 64, 64), torch.zeros(1, 64, 64)
    >>> edit = DiffusionLocalInpaint(num_inference_steps=1)(image, mask, "MRI of brain, glioma")
    >>> edit.image is image, edit.label, edit.record["reason"]
    (True, None, 'empty mask')
    """

    image: NdarrayOrTensor
    label: NdarrayOrTensor | None
    record: dict[str, str | int | float | bool]


def open_request(request: Request, settings: RepaintSettings, label_value: LabelValue) -> Stack:
    """Check a request and cut its volume into the slices from the first to the last that the mask touches.

    Args:
        request: arguments of the edit.
        settings: plane, window and control of the edit.
        label_value: class id that the edit paints, or several, see ``paint_label``.

    Raises:
        GridMismatchError: mask, label or control on another grid.
        ValueError: wrong dimensions or channels, non-finite voxels, a label type without ``label_value``, or a control image without a
            ControlNet.
    """
    image = request.image
    check_image(image, MANY_CHANNELS)
    check_grid("mask", request.mask, image)
    if request.label is not None:
        check_grid("label", request.label, image)
        check_painted_label(plain(request.label), plain(request.mask), label_value, request.label.dtype)
    if request.control is not None:
        check_grid("control", request.control, image, channels=(1, 3))
        if not isinstance(settings.options.control, ControlNet):
            raise ValueError("a control image was given, but no ControlNet: set options=InpaintOptions(control=ControlNet(...))")
    volume, region = plain(image), plain(request.mask)
    affine = affine_of(image)
    plane = plane_of(image, settings.plane)
    window = Window(0.0, 1.0)  # not used when the mask is empty
    channels: tuple[ShownChannel, ...] = ()
    slab = slab_of(region, plane)
    if slab.length:
        check_finite(volume)
        if settings.options.channels.one_by_one or not is_one_picture(volume, settings.window):
            channels = _shown_channels(volume, request.prompt, settings)
        else:
            window = settings.window or window_of(volume, prompt=prompt_text(request.prompt))
        if settings.window is not None:
            warn_if_too_wide(volume, settings.window)
    return open_stack(
        volume,
        region,
        plane,
        slab,
        window,
        prompt=prompt_pairs(request.prompt),
        seed=request.seed,
        pixel_mm=pixel_mm(affine, plane),
        control=None if request.control is None else plain(request.control),
        channels=channels,
        slice_mm=slice_mm(affine, plane),
    )


def _shown_channels(volume: Tensor, prompt: Prompt, settings: RepaintSettings) -> tuple[ShownChannel, ...]:
    """The channels that are repainted one by one, each with its window and prompt."""
    options, pairs = settings.options.channels, prompt_pairs(prompt)
    indices = options.chosen(volume.shape[0])
    window = None if settings.window is None else (settings.window.low, settings.window.high)
    varied = varied_channels(volume)
    if options.windows is None:
        windows = windows_of(volume[list(indices)], window, prompt_text(prompt))
    else:
        windows = tuple(Window(*ends) for ends in options.windows)
    return tuple(
        ShownChannel(index, windows[k], tuple((weight, options.prompt_of(k, text)) for weight, text in pairs))
        for k, index in enumerate(indices)
        if index in varied
    )


def finish_request(
    request: Request,
    outcome: Outcome,
    *,
    label_value: LabelValue,
    model: str,
    plane: str = "axial",
    contrast: Contrast = EVERY_CONTRAST,
) -> Edit:
    """The edited image in the type of the input, the label with the edit painted in, and the record.

    Args:
        request: arguments of the edit.
        outcome: the repainted volume, or why there is none.
        label_value: class id that is painted, 0 erases; or several, see ``paint_label``.
        model: source of the model, for the record.
        plane: anatomical plane of the slices.
        contrast: what the edit must reach to count as painted.
    """
    text = prompt_text(request.prompt)
    record = DiffAugRecord(seed=request.seed, prompt=text, model=model, tries=1, reason=_reason(outcome, request.mask))
    if outcome.volume is None:
        return Edit(request.image, request.label, record.as_dict())
    affine, region = affine_of(request.image), plain(request.mask)
    spatial = plane_of(request.image, plane)
    measured = lesion_contrast(outcome.volume, region, spatial)
    record.contrast, record.cnr = measured
    record.size_mm = longest_side_mm(region, affine, spatial)
    record.reason = contrast.refusal(measured, text)
    if record.reason:
        return Edit(request.image, request.label, record.as_dict())
    record.applied, record.n_slices = True, outcome.n_slices
    label = request.label
    if label is not None:
        label = like(paint_label(plain(label), plain(request.mask).to(plain(label).device), label_value), label)
    return Edit(like(outcome.volume, request.image), label, record.as_dict())


def _reason(outcome: Outcome, mask: NdarrayOrTensor) -> str:
    """Why there is no edit; for an empty mask also the cause that its meta data names."""
    because = mask.meta.get(EMPTY_BECAUSE) if outcome.volume is None and isinstance(mask, MetaTensor) else None
    return outcome.reason if because is None or bool(mask.any()) else f"{outcome.reason}: {because}"


def prompt_text(prompt: Prompt) -> str:
    """The prompt as one line, for the record; an invalid prompt as Python prints it.

    >>> prompt_text([(0.5, "glioma"), (0.5, "oedema")])
    '0.5 * glioma + 0.5 * oedema'
    """
    try:
        return prompt if isinstance(prompt, str) else prompt_mix_text(prompt)
    except (TypeError, ValueError):
        return str(prompt)
