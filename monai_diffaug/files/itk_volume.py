"""Files that ITK reads: .mha and .nrrd."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.errors import one_line
from monai_diffaug.files.picture import ImageFileError, Picture

__all__ = ["LPS_TO_RAS", "itk_silent", "read_itk", "write_itk"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk(path: Path, suffix: str) -> Picture:
    """Read a file with any number of channels; for several channels ITK's Python package needs a type of its ``VectorImage``.

    Raises:
        ImageFileError: a corrupt or truncated file, neither 2-D nor 3-D, or voxels of a type that ITK's Python package does not hold.
    """
    import itk

    with itk_silent():
        try:
            content = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
            if content is None:
                raise RuntimeError("no format of ITK")
            content.SetFileName(str(path))
            content.ReadImageInformation()
            dimension, channels = int(content.GetNumberOfDimensions()), int(content.GetNumberOfComponents())
            component = str(content.GetComponentTypeAsString(content.GetComponentType()))
            if dimension not in (2, 3):
                shape = tuple(int(content.GetDimensions(axis)) for axis in range(dimension))
                raise ImageFileError(f"{path}: a {dimension}-D image of shape {shape}; give one 2-D or 3-D volume")
            image = itk.imread(str(path)) if channels == 1 else _read_channels(path, component, dimension)
        except ImageFileError:
            raise
        except TypeError as error:  # ITK's TemplateTypeError
            raise ImageFileError(
                f"{path}: {channels} channel(s) of type {component.replace('_', ' ')} cannot be read by ITK's Python package; save the "
                "image with another type, e.g. 8 or 16 bits or float"
            ) from error
        except (RuntimeError, KeyError) as error:
            raise ImageFileError(f"{path}: corrupt or truncated, ITK cannot read it ({one_line(error)})") from error
    return _from_itk(path, suffix, image)


def _read_channels(path: Path, component: str, dimension: int) -> Any:
    import itk

    types = {"unsigned_char": itk.UC, "short": itk.SS, "unsigned_short": itk.US, "float": itk.F, "double": itk.D}
    if component not in types:
        raise TypeError(component)
    reader = itk.ImageFileReader[itk.VectorImage[types[component], dimension]].New(FileName=str(path))
    reader.Update()
    return reader.GetOutput()


@contextlib.contextmanager
def itk_silent() -> Iterator[None]:
    """Suppress the warnings that ITK's C++ code prints on stderr; faults are raised as errors here."""
    import itk

    enabled = itk.Object.GetGlobalWarningDisplay()
    itk.Object.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        itk.Object.SetGlobalWarningDisplay(enabled)


def _from_itk(path: Path, suffix: str, image: Any) -> Picture:
    import itk

    dimension = image.GetImageDimension()
    channels = image.GetNumberOfComponentsPerPixel()
    array = itk.array_from_image(image)
    if channels == 1:
        array = array[..., None]
    # axes of ITK's arrays: z, y, x, channel
    stored = array.transpose(dimension, *reversed(range(dimension)))
    affine = np.eye(4)
    direction = itk.array_from_matrix(image.GetDirection())
    affine[:dimension, :dimension] = direction @ np.diag([float(s) for s in image.GetSpacing()])
    affine[:dimension, 3] = [float(o) for o in image.GetOrigin()]
    return Picture(path, suffix, stored, affine=LPS_TO_RAS @ affine, header=image)


def write_itk(stored: NDArray[Any], like: Picture, part: Path) -> None:
    """Write stored numbers (C, H, W[, D]) with the geometry and metadata of ``like``."""
    import itk

    dimension = len(like.shape)
    array = stored.transpose(*reversed(range(1, dimension + 1)), 0)
    is_vector = stored.shape[0] > 1
    image = itk.image_from_array(np.ascontiguousarray(array if is_vector else array[..., 0]), is_vector=is_vector)
    image.SetSpacing(like.header.GetSpacing())
    image.SetOrigin(like.header.GetOrigin())
    image.SetDirection(like.header.GetDirection())
    image.SetMetaDataDictionary(like.header.GetMetaDataDictionary())
    itk.imwrite(image, str(part), compression=True)
