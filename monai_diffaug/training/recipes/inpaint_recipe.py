"""Train the inpainter: fresh, whole or by LoRA, for models that predict velocity, noise or clean latents."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.painting import Painting, write_paintings
from monai_diffaug.models.portable_folder import make_portable
from monai_diffaug.models.progress_bars import without_progress_bars
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.captions import with_dropout
from monai_diffaug.training.crop_sampler import CropBatch
from monai_diffaug.training.decoder_loss import decoder_loss, decoder_modules, is_poor
from monai_diffaug.training.diffusion_loss import EncodedCrops, denoising_loss, encode_crops
from monai_diffaug.training.embedded.architectures import build_inpainter
from monai_diffaug.training.encoded_ring import EncodedRing
from monai_diffaug.training.lora import CLIP_ATTENTION, UNET_ATTENTION, add_adapters, merged
from monai_diffaug.training.recipe import Recipe
from monai_diffaug.training.recipes.vae_recipe import load_vae
from monai_diffaug.training.run_settings import TrainingInputError
from monai_diffaug.training.sample_pictures import draw_inpainted

__all__ = ["ADAPTER_NOTE", "InpaintRecipe"]

logger = logging.getLogger(__name__)

ADAPTER_NOTE = "adapter/adapter.json"
TEXT_DROPOUT = 0.1
SMALL = 50e6  # parameters; a smaller network needs, and bears, a higher rate
FRESH_RATE = 6e-4
RATES = {(True, False): 2e-4, (False, False): 1e-5, (True, True): 2e-3, (False, True): 1e-4}  # (small, lora)


class InpaintRecipe(Recipe):
    r"""Train the UNet, and optionally the text encoder, of a diffusers inpainting model on crops of the images.

    The loss is ``lesion_weighted_loss``: min-SNR weighted (Hang et al., ICCV 2023) and twice as large under the mask. A tenth of the
    captions is empty, for classifier-free guidance (Ho and Salimans, 2022). Fresh weights have the embedded architecture: v-prediction
    with zero terminal SNR (Lin et al., WACV 2024), text encoder and tokenizer of the package's vocabulary, both trained, on the latents of
    ``vae``. The autoencoder stays as it is, except for the decoder where it reproduces the images badly (see ``training.decoder_loss``);
    ``texture_weight`` adds ``texture_loss`` to the loss of that decoder.

    The embedded inpainter::

        monai-diffaug train inpaint --data datalist.json --model fresh --vae runs/vae --out runs/inpaint --minutes 75 --batch-size 16 \
            --share breast_ultrasound=0.5

    ``settings.model`` is "fresh", "tiny", a diffusers folder or a hub id.

    Raises:
        ModelSourceError: nothing loadable under one of the sources.
        TrainingInputError: ``texture_weight`` where the decoder is not trained.
    """

    name = "inpaint"
    options: ClassVar[tuple[str, ...]] = ("lora", "text_encoder", "decoder", "texture_weight", "vae")

    def build(self) -> None:
        settings = self.settings
        if self.is_fresh:
            self.model = build_inpainter(load_vae(settings.vae), self.device)
        else:
            self.model = load_inpainter(ModelSpec("inpainter", settings.model), self.device)
        self.size_px = self.model.size_px
        self.trains_text = settings.text_encoder or self.is_fresh
        self.modules = {"unet": self.model.unet, **({"text_encoder": self.model.text_encoder} if self.trains_text else {})}
        self.adapters: dict[str, Any] = {}
        for part, network in self.modules.items():
            if settings.lora:
                self.adapters[part] = add_adapters(network, UNET_ATTENTION if part == "unet" else CLIP_ATTENTION, settings.rank)
            else:
                network.requires_grad_(True)
        is_small = sum(p.numel() for p in self.model.unet.parameters()) < SMALL
        self.rate = FRESH_RATE if self.is_fresh else RATES[(is_small, settings.lora)]
        self.trains_decoder = self._needs_decoder(is_small) if settings.decoder is None else settings.decoder
        if settings.texture_weight > 0 and not self.trains_decoder:
            raise TrainingInputError("--texture-weight is of the decoder's loss, and this run leaves the decoder as it is; add --decoder")
        if self.trains_decoder:
            self.modules = {**self.modules, **decoder_modules(self.model)}

    @property
    def paintings(self) -> Mapping[str, Painting]:
        """Settings that the written model paints best with."""
        return self.model.paintings

    def _needs_decoder(self, is_small: bool) -> bool:
        """True for a small model whose decoder does not know the images; with LoRA and for a large one the user has to say so."""
        if not is_poor(self.model, self.sampler(self.settings.seed)):
            return False
        trains = is_small and not self.settings.lora
        logger.warning("its decoder is trained too (--no-decoder leaves it)" if trains else "--decoder trains its decoder too")
        return trains

    def reseed(self, seed: int) -> None:
        super().reseed(seed)
        self.ring = EncodedRing(self.crops, self._encode)

    def _context(self, captions: list[str]) -> Tensor:
        if self.trains_text:
            self.model.forget_prompts()  # their states are those of older weights
        states = self.model.encode_text(with_dropout(captions, TEXT_DROPOUT, self.generator))
        if self.trains_text:
            self.model.forget_prompts()  # they hold the graph of this step
        return states

    def _encode(self, batch: CropBatch) -> tuple[Tensor, ...]:
        """Latents, mask, latents of the masked image and, where the decoder is trained, the images."""
        encoded = encode_crops(self.model, batch.images, batch.hidden)
        return (*encoded, batch.images) if self.trains_decoder else encoded

    def loss(self, progress: float = 0.0) -> Tensor:
        (latents, mask, masked, *images), captions = self.ring.batch(self.settings.batch_size)
        steps = torch.randint(int(self.model.scheduler.config.num_train_timesteps), (len(latents),), generator=self.generator)
        noise = torch.randn(latents.shape, generator=self.generator)
        crops, context = EncodedCrops(latents, mask, masked), self._context(captions)
        loss = denoising_loss(self.model, self.model.denoise, crops, context, steps, noise)
        return loss + decoder_loss(self.model, latents, images[0], self.generator, self.settings.texture_weight) if images else loss

    def draw(self, file: Path) -> None:
        self.model.forget_prompts()
        draw_inpainted(self.model, self.held_out, file, seed=self.settings.seed)

    def write(self, folder: Path) -> None:
        """A plain diffusers folder with merged weights; with LoRA the adapter alone in ``folder/adapter`` too."""
        from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline

        pipeline_class: Any = StableDiffusionInpaintPipeline if self.model.takes_mask else StableDiffusionPipeline
        model = copy(self.model)
        for name in self.adapters:
            setattr(model, name, merged(getattr(model, name)))
        pipeline = pipeline_class(
            vae=model.vae,
            text_encoder=model.text_encoder,
            tokenizer=model.tokenizer,
            unet=model.unet,
            scheduler=model.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        with without_progress_bars():
            pipeline.save_pretrained(folder, safe_serialization=True)
        write_paintings(folder, self.paintings)
        make_portable(folder)
        if self.adapters:
            self._write_adapter(pipeline_class, folder)

    def _write_adapter(self, pipeline_class: Any, folder: Path) -> None:
        """In diffusers' format: ``pipeline.load_lora_weights(folder / "adapter")`` takes it."""
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        layers = {
            f"{part}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(getattr(self.model, part)))
            for part in self.adapters
        }
        pipeline_class.save_lora_weights(str((folder / ADAPTER_NOTE).parent), **layers)
        note = {"base": self.settings.model, "rank": self.settings.rank, "alpha": self.settings.rank, "parts": sorted(self.adapters)}
        (folder / ADAPTER_NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
