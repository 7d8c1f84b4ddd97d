"""Local, text- and mask-guided diffusion augmentation of medical images as MONAI dictionary transforms."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from monai_diffaug.errors import DroppedSampleError, GridMismatchError, MissingExtraError, ModelSourceError, WorkerDeviceError
from monai_diffaug.version import __version__

if TYPE_CHECKING:
    from monai_diffaug.data.lesion_bank import LesionBank
    from monai_diffaug.data.stored_keys import PackKeysd, UnpackKeysd, with_placeholders
    from monai_diffaug.data.thread_loader import RaisingThreadDataLoader
    from monai_diffaug.data.transform_hash import transform_hashing
    from monai_diffaug.data.variants import DrawVariantd, VariantBank
    from monai_diffaug.transforms.batch import BatchLocalInpaint, PrepareBatchInpaint
    from monai_diffaug.transforms.cached_random import CachedRandomd
    from monai_diffaug.transforms.edge_map import EdgeMap, EdgeMapd
    from monai_diffaug.transforms.latent_validate import LatentValidate
    from monai_diffaug.transforms.latent_validated import LatentValidated
    from monai_diffaug.transforms.lesion_novelty import LesionNovelty
    from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
    from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
    from monai_diffaug.transforms.medsam_mask import MedSAMMask, MedSAMMaskd
    from monai_diffaug.transforms.patch_merge import RandPatchMerge, RandPatchMerged, RandSynthetic, RandSyntheticd
    from monai_diffaug.transforms.patch_merge_loss import PatchMergeLoss
    from monai_diffaug.transforms.place_mask import PlaceMask, PlaceMaskd
    from monai_diffaug.transforms.soft_mask import SoftMask, SoftMaskd
    from monai_diffaug.transforms.text_prompt import TextPrompt, TextPromptd

# MONAI and torch take seconds to import: what needs them is imported at first use, so that the command line answers at once
_MODULES = {
    "data.stored_keys": ("PackKeysd", "UnpackKeysd", "with_placeholders"),
    "data.thread_loader": ("RaisingThreadDataLoader",),
    "data.transform_hash": ("transform_hashing",),
    "data.lesion_bank": ("LesionBank",),
    "transforms.patch_merge_loss": ("PatchMergeLoss",),
    "transforms.batch": ("BatchLocalInpaint", "PrepareBatchInpaint"),
    "transforms.cached_random": ("CachedRandomd",),
    "transforms.edge_map": ("EdgeMap", "EdgeMapd"),
    "transforms.latent_validate": ("LatentValidate",),
    "transforms.latent_validated": ("LatentValidated",),
    "transforms.lesion_novelty": ("LesionNovelty",),
    "transforms.local_inpaint": ("DiffusionLocalInpaint",),
    "transforms.local_inpaintd": ("DiffusionLocalInpaintd",),
    "transforms.medsam_mask": ("MedSAMMask", "MedSAMMaskd"),
    "transforms.patch_merge": ("RandPatchMerge", "RandPatchMerged", "RandSynthetic", "RandSyntheticd"),
    "transforms.place_mask": ("PlaceMask", "PlaceMaskd"),
    "transforms.soft_mask": ("SoftMask", "SoftMaskd"),
    "transforms.text_prompt": ("TextPrompt", "TextPromptd"),
    "data.variants": ("DrawVariantd", "VariantBank"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BatchLocalInpaint",
    "CachedRandomd",
    "DiffusionLocalInpaint",
    "DiffusionLocalInpaintd",
    "DrawVariantd",
    "DroppedSampleError",
    "EdgeMap",
    "EdgeMapd",
    "GridMismatchError",
    "LatentValidate",
    "LatentValidated",
    "LesionBank",
    "LesionNovelty",
    "MedSAMMask",
    "MedSAMMaskd",
    "MissingExtraError",
    "ModelSourceError",
    "PackKeysd",
    "PatchMergeLoss",
    "PlaceMask",
    "PlaceMaskd",
    "PrepareBatchInpaint",
    "RaisingThreadDataLoader",
    "RandPatchMerge",
    "RandPatchMerged",
    "RandSynthetic",
    "RandSyntheticd",
    "SoftMask",
    "SoftMaskd",
    "TextPrompt",
    "TextPromptd",
    "UnpackKeysd",
    "VariantBank",
    "WorkerDeviceError",
    "__version__",
    "transform_hashing",
    "with_placeholders",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"monai_diffaug.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


# A Bundle finds `_target_: DiffusionLocalInpaintd` only in loaded modules; where MONAI is loaded too, laziness saves nothing
if "monai.bundle" in sys.modules:
    for _name in _MODULE_OF:
        __getattr__(_name)
