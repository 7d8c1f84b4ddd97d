"""Train a semantic controller next to a frozen inpainter: distillation first, then the diffusion loss in addition."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from monai_diffaug.edit.options import SemanticController
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.models.semantic_controller import build_semantic_model, load_semantic_controller, save_semantic_controller
from monai_diffaug.training.crop_sampler import CropBatch
from monai_diffaug.training.encoded_ring import EncodedRing
from monai_diffaug.training.recipe import Recipe
from monai_diffaug.training.sample_pictures import draw_inpainted
from monai_diffaug.training.semantic_loss import SemanticCrops, encode_semantic_crops, semantic_loss

__all__ = ["SemanticControllerRecipe"]

FRESH_RATE, TRAINED_RATE = 5e-4, 2e-4
DISTILLATION_SHARE = 0.4  # of the run


class SemanticControllerRecipe(Recipe):
    """Train controller and adapter (MedSoft-Diffusion, 2025); inpainter and encoder stay as they are.

    In the first 40 % of the run the controller alone learns to predict the features of the unmasked image from those of the masked
    one (``distillation_loss``). Then controller and adapter learn together, from the diffusion loss as well (``semantic_loss``); a tenth
    of the crops has neither text nor semantic tokens, so that classifier-free guidance can drop both.

    The embedded controller::

        monai-diffaug train semantic-controller --data datalist.json --model fresh --out runs/semantic --minutes 60 --batch-size 16

    ``settings.inpainter`` is the frozen model; ``settings.model`` is "fresh", "tiny" or the folder of a controller for it. For fresh
    weights ``settings.encoder`` is the MedSAM whose features they predict.

    Raises:
        ModelSourceError: nothing loadable under one of the sources.
        ValueError: the controller was trained for another inpainter.
    """

    name = "semantic-controller"
    options = ("inpainter", "encoder")

    def build(self) -> None:
        self.model = load_inpainter(ModelSpec("inpainter", self.settings.inpainter), self.device)
        if self.is_fresh:
            self.semantic = build_semantic_model(self.model, encoder=_absolute(self.settings.encoder))
        else:
            self.semantic = load_semantic_controller(ModelSpec("semantic_controller", self.settings.model), self.device)
            self.semantic.unet_of(self.model.unet)  # raises if it does not fit
        self.semantic.parts.train().requires_grad_(True)
        self.modules, self.rate = dict(self.semantic.parts.named_children()), FRESH_RATE if self.is_fresh else TRAINED_RATE
        self.size_px = self.model.size_px

    def reseed(self, seed: int) -> None:
        super().reseed(seed)
        self.ring = EncodedRing(self.crops, self._encode)

    def _encode(self, batch: CropBatch) -> tuple[Tensor, ...]:
        return tuple(encode_semantic_crops(self.model, self.semantic, batch.images, batch.hidden, batch.captions)[:-1])

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
    return str(path.resolve()) if encoder != "tiny" and path.exists() else encoder
