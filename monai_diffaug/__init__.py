"""Local, text- and mask-guided diffusion augmentation of medical images as MONAI dictionary transforms.

A program that imports the package gets all public names, and MONAI Bundles know them by their short names. Only the command line
imports them at first use: MONAI and torch take seconds to import, and ``monai-diffaug --help`` needs neither.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffaug.errors import DroppedSampleError, GridMismatchError, MissingExtraError, ModelSourceError, WorkerDeviceError
from monai_diffaug.version import __version__

if TYPE_CHECKING:
    from monai_diffaug import presets
    from monai_diffaug.data.donor import Donor
    from monai_diffaug.data.donor_bank import DonorBank
    from monai_diffaug.data.edit_summary import EditSummary
    from monai_diffaug.data.lesion_bank import LesionBank
    from monai_diffaug.data.stored_keys import PackKeysd, UnpackKeysd, with_placeholders
    from monai_diffaug.data.thread_loader import RaisingThreadDataLoader
    from monai_diffaug.data.transform_hash import transform_hashing
    from monai_diffaug.data.variants import DrawVariantd, VariantBank
    from monai_diffaug.edit.channel_options import Channels
    from monai_diffaug.edit.contrast import Contrast
    from monai_diffaug.edit.options import ControlNet, InpaintOptions, Noise, Region, Run, SemanticController, SoftEdge
    from monai_diffaug.edit.record import DiffAugRecord
    from monai_diffaug.edit.request import Edit
    from monai_diffaug.edit.transplant_options import Blend, Donors, Geometry, Transplant, TransplantRecord
    from monai_diffaug.edit.validation_options import Dynamic, Screen, Validator
    from monai_diffaug.files.preview import draw_preview
    from monai_diffaug.prompts import Vocabulary
    from monai_diffaug.transforms.batch import BatchLocalInpaint, PrepareBatchInpaint
    from monai_diffaug.transforms.cached_random import CachedRandomd
    from monai_diffaug.transforms.edge_map import EdgeMap, EdgeMapd
    from monai_diffaug.transforms.erase_lesion import EraseLesion, EraseLesiond
    from monai_diffaug.transforms.latent_validate import LatentValidate, Verdict
    from monai_diffaug.transforms.latent_validated import LatentValidated
    from monai_diffaug.transforms.lesion_novelty import LesionNovelty, Novelty
    from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
    from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
    from monai_diffaug.transforms.medsam_mask import MedSAMMask, MedSAMMaskd
    from monai_diffaug.transforms.nothing_found import NothingFound
    from monai_diffaug.transforms.patch_merge import Merge, RandPatchMerge, RandPatchMerged, RandSynthetic, RandSyntheticd
    from monai_diffaug.transforms.patch_merge_loss import PatchMergeLoss
    from monai_diffaug.transforms.place_mask import PlaceMask, PlaceMaskd
    from monai_diffaug.transforms.soft_mask import SoftMask, SoftMaskd
    from monai_diffaug.transforms.text_prompt import TextPrompt, TextPromptd
    from monai_diffaug.transforms.transplant_lesion import Transplanted, TransplantLesion
    from monai_diffaug.transforms.transplant_lesiond import TransplantLesiond

_MODULES = {
    "data.donor": ("Donor",),
    "data.donor_bank": ("DonorBank",),
    "data.edit_summary": ("EditSummary",),
    "data.lesion_bank": ("LesionBank",),
    "data.stored_keys": ("PackKeysd", "UnpackKeysd", "with_placeholders"),
    "data.thread_loader": ("RaisingThreadDataLoader",),
    "data.transform_hash": ("transform_hashing",),
    "data.variants": ("DrawVariantd", "VariantBank"),
    "edit.contrast": ("Contrast",),
    "edit.channel_options": ("Channels",),
    "edit.options": ("ControlNet", "InpaintOptions", "Noise", "Region", "Run", "SemanticController", "SoftEdge"),
    "edit.record": ("DiffAugRecord",),
    "edit.request": ("Edit",),
    "edit.transplant_options": ("Blend", "Donors", "Geometry", "Transplant", "TransplantRecord"),
    "edit.validation_options": ("Dynamic", "Screen", "Validator"),
    "files.preview": ("draw_preview",),
    "prompts": ("Vocabulary",),
    "transforms.batch": ("BatchLocalInpaint", "PrepareBatchInpaint"),
    "transforms.cached_random": ("CachedRandomd",),
    "transforms.edge_map": ("EdgeMap", "EdgeMapd"),
    "transforms.erase_lesion": ("EraseLesion", "EraseLesiond"),
    "transforms.latent_validate": ("LatentValidate", "Verdict"),
    "transforms.latent_validated": ("LatentValidated",),
    "transforms.lesion_novelty": ("LesionNovelty", "Novelty"),
    "transforms.local_inpaint": ("DiffusionLocalInpaint",),
    "transforms.local_inpaintd": ("DiffusionLocalInpaintd",),
    "transforms.medsam_mask": ("MedSAMMask", "MedSAMMaskd"),
    "transforms.nothing_found": ("NothingFound",),
    "transforms.patch_merge": ("Merge", "RandPatchMerge", "RandPatchMerged", "RandSynthetic", "RandSyntheticd"),
    "transforms.patch_merge_loss": ("PatchMergeLoss",),
    "transforms.place_mask": ("PlaceMask", "PlaceMaskd"),
    "transforms.soft_mask": ("SoftMask", "SoftMaskd"),
    "transforms.text_prompt": ("TextPrompt", "TextPromptd"),
    "transforms.transplant_lesion": ("TransplantLesion", "Transplanted"),
    "transforms.transplant_lesiond": ("TransplantLesiond",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BatchLocalInpaint",
    "Blend",
    "CachedRandomd",
    "Channels",
    "Contrast",
    "ControlNet",
    "DiffAugRecord",
    "DiffusionLocalInpaint",
    "DiffusionLocalInpaintd",
    "Donor",
    "DonorBank",
    "Donors",
    "DrawVariantd",
    "DroppedSampleError",
    "Dynamic",
    "EdgeMap",
    "EdgeMapd",
    "Edit",
    "EditSummary",
    "EraseLesion",
    "EraseLesiond",
    "Geometry",
    "GridMismatchError",
    "InpaintOptions",
    "LatentValidate",
    "LatentValidated",
    "LesionBank",
    "LesionNovelty",
    "MedSAMMask",
    "MedSAMMaskd",
    "Merge",
    "MissingExtraError",
    "ModelSourceError",
    "Noise",
    "NothingFound",
    "Novelty",
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
    "Region",
    "Run",
    "Screen",
    "SemanticController",
    "SoftEdge",
    "SoftMask",
    "SoftMaskd",
    "TextPrompt",
    "TextPromptd",
    "Transplant",
    "TransplantLesion",
    "TransplantLesiond",
    "TransplantRecord",
    "Transplanted",
    "UnpackKeysd",
    "Validator",
    "VariantBank",
    "Verdict",
    "Vocabulary",
    "WorkerDeviceError",
    "__version__",
    "draw_preview",
    "presets",
    "transform_hashing",
    "with_placeholders",
]


def __getattr__(name: str) -> Any:
    if name == "presets":
        return import_module("monai_diffaug.presets")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"monai_diffaug.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _is_command_line() -> bool:
    """Whether this process is ``monai-diffaug`` or ``python -m monai_diffaug[.module]``."""
    if Path(getattr(sys, "argv", [""])[0]).stem == "monai-diffaug":
        return True
    arguments = sys.orig_argv
    return "-m" in arguments[:-1] and arguments[arguments.index("-m") + 1].partition(".")[0] == __name__


if not _is_command_line():
    for _name in ("presets", *_MODULE_OF):
        globals()[_name] = __getattr__(_name)
