"""Local, text- and mask-guided diffusion augmentation of medical images as MONAI dictionary transforms."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from monai_diffaug.errors import DroppedSampleError, GridMismatchError, MissingExtraError, ModelSourceError, WorkerDeviceError
from monai_diffaug.version import __version__

if TYPE_CHECKING:
    from monai_diffaug.transforms.latent_validate import LatentValidate, LatentValidated
    from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint, DiffusionLocalInpaintd
    from monai_diffaug.transforms.medsam_mask import MedSAMMask, MedSAMMaskd
    from monai_diffaug.transforms.soft_mask import SoftMask, SoftMaskd
    from monai_diffaug.transforms.text_prompt import TextPrompt, TextPromptd

# MONAI and torch take seconds to import: the transforms are imported at first use, so that the command line answers at once
_TRANSFORMS = {
    "DiffusionLocalInpaint": "local_inpaint",
    "DiffusionLocalInpaintd": "local_inpaint",
    "LatentValidate": "latent_validate",
    "LatentValidated": "latent_validate",
    "MedSAMMask": "medsam_mask",
    "MedSAMMaskd": "medsam_mask",
    "SoftMask": "soft_mask",
    "SoftMaskd": "soft_mask",
    "TextPrompt": "text_prompt",
    "TextPromptd": "text_prompt",
}

__all__ = [
    "DiffusionLocalInpaint",
    "DiffusionLocalInpaintd",
    "DroppedSampleError",
    "GridMismatchError",
    "LatentValidate",
    "LatentValidated",
    "MedSAMMask",
    "MedSAMMaskd",
    "MissingExtraError",
    "ModelSourceError",
    "SoftMask",
    "SoftMaskd",
    "TextPrompt",
    "TextPromptd",
    "WorkerDeviceError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _TRANSFORMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"monai_diffaug.transforms.{_TRANSFORMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


# A Bundle finds `_target_: DiffusionLocalInpaintd` only in modules that are loaded when it looks; where MONAI is there, laziness saves nothing
if "monai.bundle" in sys.modules:
    for _name in _TRANSFORMS:
        __getattr__(_name)
