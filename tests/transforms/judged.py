"""Edited samples, and segmenters that answer what a test wants."""

from __future__ import annotations

import torch

from monai_diffaug.edit.record import DiffAugRecord
from monai_diffaug.transforms.latent_validated import LatentValidated

OLD, NEW = 0.2, 0.9


def bright(images):
    """Segments whatever is bright."""
    return (images.mean(1, keepdim=True) > 0).float()


def nothing(images):
    return torch.zeros_like(images[:, :1])


def disc(size=64, centre=(32, 32), radius=10):
    ys, xs = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((ys - centre[0]) ** 2 + (xs - centre[1]) ** 2 <= radius**2)[None].float()


def flat(shape):
    """A dark image with a bright border pixel, so that its window is that of the edited one."""
    image = torch.full(shape, OLD)
    image[..., 0, :] = 1.0
    image[..., -1, :] = 0.0
    return image


def edited_sample(painted=None, mask=None, **record):
    mask = disc() if mask is None else mask
    painted = mask if painted is None else painted
    original = flat(mask.shape)
    image = torch.where(painted > 0, NEW, original)
    label = torch.zeros_like(mask)
    return {
        "image": image,
        "mask": mask,
        "label": torch.where(mask > 0, 1.0, label),
        "image_diffaug": DiffAugRecord(applied=True, seed=5, tries=1, n_slices=1, **record).as_dict(),
        "image_original": original,
        "label_original": label,
        "mask_original": mask,
    }


def validated(segmenter=bright, **options):
    options = {"label_key": "label", "window": (0.0, 1.0), **options}
    return LatentValidated("image", model=segmenter, **options)
