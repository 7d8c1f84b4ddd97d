"""Local, text- and mask-guided diffusion augmentation of medical images as MONAI dictionary transforms."""

from monai_diffaug.errors import DroppedSampleError, GridMismatchError, MissingExtraError, ModelSourceError, WorkerDeviceError
from monai_diffaug.transforms.latent_validate import LatentValidate, LatentValidated
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint, DiffusionLocalInpaintd
from monai_diffaug.transforms.medsam_mask import MedSAMMask, MedSAMMaskd
from monai_diffaug.transforms.soft_mask import SoftMask, SoftMaskd
from monai_diffaug.transforms.text_prompt import TextPrompt, TextPromptd
from monai_diffaug.version import __version__

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
