"""MONAI transforms, one per file, in array and dictionary form.

They unpack keys, draw random numbers and pack keys; tensor mathematics belongs to ``edit``, ``masks`` and ``geometry``.
"""

from monai_diffaug.transforms.batch import BatchLocalInpaint, PrepareBatchInpaint
from monai_diffaug.transforms.cached_random import CachedRandomd
from monai_diffaug.transforms.edge_map import EdgeMap, EdgeMapd
from monai_diffaug.transforms.erase_lesion import EraseLesion, EraseLesiond
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.lesion_novelty import LesionNovelty
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.medsam_mask import MedSAMMask, MedSAMMaskd
from monai_diffaug.transforms.patch_merge import RandPatchMerge, RandPatchMerged, RandSynthetic, RandSyntheticd
from monai_diffaug.transforms.place_mask import PlaceMask, PlaceMaskd
from monai_diffaug.transforms.soft_mask import SoftMask, SoftMaskd
from monai_diffaug.transforms.text_prompt import TextPrompt, TextPromptd
from monai_diffaug.transforms.transplant_lesion import TransplantLesion
from monai_diffaug.transforms.transplant_lesiond import TransplantLesiond

__all__ = [
    "BatchLocalInpaint",
    "CachedRandomd",
    "DiffusionLocalInpaint",
    "DiffusionLocalInpaintd",
    "EdgeMap",
    "EdgeMapd",
    "EraseLesion",
    "EraseLesiond",
    "LatentValidate",
    "LatentValidated",
    "LesionNovelty",
    "MedSAMMask",
    "MedSAMMaskd",
    "PlaceMask",
    "PlaceMaskd",
    "PrepareBatchInpaint",
    "RandPatchMerge",
    "RandPatchMerged",
    "RandSynthetic",
    "RandSyntheticd",
    "SoftMask",
    "SoftMaskd",
    "TextPrompt",
    "TextPromptd",
    "TransplantLesion",
    "TransplantLesiond",
]
