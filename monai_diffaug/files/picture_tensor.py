"""An image file as a tensor on its own grid, and back to an array."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray

from monai_diffaug.files.picture import Picture

__all__ = ["array_of", "model_values", "tensor_on_grid"]

EXACT_DTYPES = ("uint8", "int16", "int32", "float32")


def model_values(image: Picture) -> NDArray[Any]:
    """(C, H, W[, D]) the stored numbers if torch computes with their type exactly, else float32 in the unit of the image.

    >>> from pathlib import Path
    >>> stored = np.zeros((1, 4, 4), np.uint16)
    >>> model_values(Picture(Path("a.png"), ".png", stored)).dtype, model_values(Picture(Path("a.png"), ".png", stored.astype("u1"))).dtype
    (dtype('float32'), dtype('uint8'))
    """
    unscaled = image.slope == 1.0 and image.inter == 0.0
    return image.stored if unscaled and image.stored.dtype.name in EXACT_DTYPES else image.values


def tensor_on_grid(array: NDArray[Any], image: Picture) -> MetaTensor:
    """A copy of an array (C, H, W[, D]) with the affine and the file name of an image; the identity for pictures.

    >>> from pathlib import Path
    >>> array = np.zeros((1, 4, 4))
    >>> tensor_on_grid(array, Picture(Path("a.png"), ".png", array)).meta["filename_or_obj"]
    'a.png'
    """
    tensor = torch.from_numpy(np.array(array))  # a copy: mapped files are read-only
    affine = torch.eye(4).double() if image.affine is None else torch.from_numpy(image.affine)
    return MetaTensor(tensor, affine=affine, meta={"filename_or_obj": str(image.path)})


def array_of(data: Any) -> NDArray[Any]:
    """A tensor on any device, with or without meta data, as an array.

    >>> array_of(torch.ones(2)).tolist()
    [1.0, 1.0]
    """
    if isinstance(data, MetaTensor):
        data = data.as_tensor()
    array: NDArray[Any] = data.detach().cpu().numpy() if isinstance(data, torch.Tensor) else np.asarray(data)
    return array
