"""Train a semantic controller next to a frozen inpainter: distillation first, then the diffusion loss in addition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from monai_diffaug.edit.options import SemanticController
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.models.semantic_controller import build_semantic_model, load_semantic_controller, save_semantic_controller
from monai_diffaug.training.crop_sampler import CropBatch
from monai_diffaug.training.encoded_ring import EncodedRing
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.recipe import Recipe, seeded
from monai_diffaug.training.run_settings import FineTuneSettings
from monai_diffaug.training.sample_pictures import draw_inpainted
from monai_diffaug.training.semantic_loss import SemanticCrops, encode_semantic_crops, semantic_loss

__all__ = ["SemanticControllerRecipe"]

FRESH_RATE, TRAINED_RATE = 5e-4, 2e-4
DISTILLATION_SHARE = 0.4  # of the run
EMBEDDED = "tiny"


class SemanticControllerRecipe(Recipe):
    """Train controller and adapter (MedSoft-Diffusion, 2025); inpainter and encoder stay as they are.

    In the first 40 % of the run the controller alone learns to predict the features of the unmasked image from those of the masked
    one (``distillation_loss``). Then controller and adapter learn together, from the diffusion loss as well (``semantic_loss``); a tenth
    of the crops has neither text nor semantic tokens, so that classifier-free guidance can drop both.

    The embedded controller::

        monai-diffaug train semantic-controller --data datalist.json --model fresh --out runs/semantic --minutes 60 --batch-size 16

    Args:
        settings: ``inpainter`` is the frozen model; ``model`` is "fresh", "tiny" or the folder of a controller for it. For fresh weights
            ``encoder`` is the MedSAM whose features they predict.
        slices: to train on.
        held_out: shown in the sample pictures; the training slices when empty.

    Raises:
        ModelSourceError: nothing loadable under ``settings.model``, ``settings.inpainter`` or ``settings.encoder``.
        ValueError: the controller was trained for another inpainter.
    """

    name = "semantic-controller"
    options: ClassVar[frozenset[str]] = frozenset({"inpainter", "encoder"})

    def __init__(self, settings: FineTuneSettings, slices: Sequence[LabelledSlice], held_out: Sequence[LabelledSlice] = ()) -> None:
        super().__init__(settings, slices, held_out)
        self.model = load_inpainter(ModelSpec("inpainter", settings.inpainter), self.device)
        if self.is_fresh:
            with seeded(settings.seed):
                self.semantic = build_semantic_model(self.model, encoder=_absolute(settings.encoder))
        else:
            self.semantic = load_semantic_controller(ModelSpec("semantic_controller", settings.model), self.device)
            self.semantic.unet_of(self.model.unet)  # it must fit
        self.rate = FRESH_RATE if self.is_fresh else TRAINED_RATE
        self.semantic.parts.train().requires_grad_(True)
        self.modules: Mapping[str, nn.Module] = dict(self.semantic.parts.named_children())

    def reseed(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.ring = EncodedRing(self.sampler(self.model.size_px, seed), self._encode)

    def _encode(self, batch: CropBatch) -> tuple[Tensor, ...]:
        *tensors, _ = encode_semantic_crops(self.model, self.semantic, batch.images, batch.hidden, batch.captions)
        return tuple(tensors)

    def loss(self, progress: float = 0.0) -> Tensor:
        (latents, mask, masked, visible, whole, hidden), captions = self.ring.batch(self.settings.batch_size)
        crops = SemanticCrops(latents, mask, masked, visible, whole, hidden, captions)
        return semantic_loss(self.model, self.semantic, crops, distils=progress < DISTILLATION_SHARE, generator=self.generator)

    def draw(self, file: Path) -> None:
        draw_inpainted(self.model, self.held_out, file, seed=self.settings.seed, control=SemanticController(self.semantic))

    def write(self, folder: Path) -> None:
        """A folder that a semantic controller's ``source`` takes."""
        save_semantic_controller(self.semantic.config, self.semantic.parts, folder)


def _absolute(encoder: str) -> str:
    """An absolute path of the encoder: the written folder names it, and is used from anywhere."""
    path = Path(encoder).expanduser()
    return str(path.resolve()) if encoder != EMBEDDED and path.exists() else encoder
