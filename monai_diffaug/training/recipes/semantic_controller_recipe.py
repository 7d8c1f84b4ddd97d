"""Train a semantic controller on the user's images, beside a frozen inpainter: distillation first, then the diffusion loss."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.models.semantic_controller import SemanticModel, build_semantic_model, load_semantic_controller, save_semantic_controller
from monai_diffaug.training.embedded.train_semantic_controller import DISTILLATION_SHARE, PEAK_RATE, Batch, encode_crops, training_loss
from monai_diffaug.training.encoded_ring import EncodedRing
from monai_diffaug.training.frozen_inpainter import frozen_inpainter
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.model_folder import replace_parts
from monai_diffaug.training.run_settings import FineTuneSettings
from monai_diffaug.training.sample_pictures import draw_inpainted, lesions_to_show
from monai_diffaug.training.slice_crops import SliceCropSampler

__all__ = ["SemanticControllerRecipe"]

logger = logging.getLogger(__name__)

TRAINED_RATE = 2e-4  # peak for a controller that is trained already
EMBEDDED = "tiny"


class SemanticControllerRecipe:
    """Trains controller and adapter (MedSoft-Diffusion 2025); inpainter and encoder stay as they are.

    With the embedded inpainter and encoder it starts from the embedded controller, where there is one, else from fresh weights.

    Args:
        settings: ``model`` is the inpainter that the controller is for, ``encoder`` the MedSAM whose features it predicts.
        slices: to train on.
        held_out: shown in the sample pictures; the training slices when empty.

    Raises:
        ModelSourceError: nothing loadable under ``settings.model`` or ``settings.encoder``.
        TrainingInputError: LoRA or the text encoder is asked for, or the model predicts the clean sample.
    """

    name = "semantic-controller"

    def __init__(self, settings: FineTuneSettings, slices: Sequence[LabelledSlice], held_out: Sequence[LabelledSlice] = ()) -> None:
        self.settings = settings
        self.model = frozen_inpainter(settings, "a semantic controller")
        embedded = _embedded(self.model) if settings.model == settings.encoder == EMBEDDED else None
        self.rate = PEAK_RATE if embedded is None else TRAINED_RATE
        self.semantic = embedded or _fresh(self.model, settings)
        self.semantic.parts.train().requires_grad_(True)
        self.modules: Mapping[str, nn.Module] = dict(self.semantic.parts.named_children())
        self.slices, self.held_out = list(slices), lesions_to_show(held_out, slices)

    def reseed(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.ring = EncodedRing(SliceCropSampler(self.slices, self.model.size_px, seed), self._encode)

    def _encode(self, images: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        crops = encode_crops(self.model, self.semantic, images, masks, [])
        return crops.latents, crops.masked, crops.mask, crops.seen, crops.whole, crops.hidden

    def loss(self, progress: float = 0.0) -> Tensor:
        (latents, masked, mask, seen, whole, hidden), captions = self.ring.batch(self.settings.batch_size)
        batch = Batch(latents, masked, mask, seen, whole, hidden, captions)
        return training_loss(self.model, self.semantic, batch, distils=progress < DISTILLATION_SHARE, generator=self.generator)

    def draw(self, file: Path) -> None:
        draw_inpainted(self.model, self.held_out, file, seed=self.settings.seed, semantic_controller=self.semantic)

    def write(self, folder: Path) -> None:
        """A folder that ``semantic_controller=`` takes."""
        part = folder / "training" / "part"
        save_semantic_controller(self.semantic.config, self.semantic.parts, part)
        replace_parts(part, folder)


def _embedded(inpainter: Inpainter) -> SemanticModel | None:
    try:
        return load_semantic_controller(ModelSpec("semantic_controller", EMBEDDED), inpainter.device)
    except (ModelSourceError, ValueError) as error:
        logger.info("a new semantic controller is trained from scratch: %s", error)
        return None


def _fresh(inpainter: Inpainter, settings: FineTuneSettings) -> SemanticModel:
    """An untrained one; a path of its encoder is kept absolute, as the written folder is used from anywhere."""
    path = Path(settings.encoder).expanduser()
    encoder = str(path.resolve()) if settings.encoder != EMBEDDED and path.exists() else settings.encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return build_semantic_model(inpainter, encoder=encoder)
