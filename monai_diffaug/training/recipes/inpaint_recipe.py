"""Fine-tune the inpainter: full or LoRA, lesion-weighted loss, for velocity-, noise- and sample-predicting models."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.progress_bars import without_progress_bars
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.decoder_loss import decoder_loss, decoder_modules, is_poor
from monai_diffaug.training.embedded.train_inpaint import MIN_SNR_GAMMA, TEXT_DROPOUT, forward_process, lesion_weights, velocity_loss
from monai_diffaug.training.encoded_ring import EncodedRing
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.lora import CLIP_ATTENTION, UNET_ATTENTION, add_adapters, merged
from monai_diffaug.training.model_folder import replace_parts
from monai_diffaug.training.run_settings import FineTuneSettings
from monai_diffaug.training.sample_pictures import draw_inpainted, lesions_to_show
from monai_diffaug.training.slice_crops import SliceCropSampler

__all__ = ["InpaintRecipe", "lesion_weighted_loss"]

logger = logging.getLogger(__name__)

ADAPTER_NOTE = "adapter.json"
SMALL = 50e6  # parameters: below it a network bears, and needs, a higher rate
RATES = {(True, False): 2e-4, (False, False): 1e-5, (True, True): 2e-3, (False, True): 1e-4}  # (small, lora)


def lesion_weighted_loss(predicted: Tensor, target: Tensor, mask: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """Mean squared error with twice the weight under the mask, min-SNR weighted (Hang et al. 2023, gamma 5).

    Args:
        predicted: (B, 4, h, w) the network's answer.
        target: (B, 4, h, w) velocity, noise or clean latents.
        mask: (B, 1, h, w) in [0, 1].
        alpha_bar: (B,) cumulative alphas of the timesteps.
        prediction_type: "v_prediction", "epsilon" or "sample".

    Raises:
        ValueError: unknown prediction type.
    """
    if prediction_type == "v_prediction":
        return velocity_loss(predicted, target, mask, alpha_bar)
    snr = alpha_bar / (1 - alpha_bar).clamp_min(1e-8)
    weight = torch.minimum(snr, torch.full_like(snr, MIN_SNR_GAMMA))
    if prediction_type == "epsilon":
        weight = weight / snr.clamp_min(1e-8)
    elif prediction_type != "sample":
        raise ValueError(f"the scheduler's prediction_type must be v_prediction, epsilon or sample, got {prediction_type!r}")
    return ((predicted - target).square() * lesion_weights(mask)).mean(dim=(1, 2, 3)).mul(weight).mean()


class InpaintRecipe:
    """Trains UNet (and text encoder) of any diffusers inpainting folder on crops of the user's images.

    The autoencoder stays as it is, but for the decoder where it shows the user's images badly (see ``training.decoder_loss``).

    Args:
        settings: see ``FineTuneSettings``.
        slices: to train on.
        held_out: shown in the sample pictures; the training slices when empty.

    Raises:
        ModelSourceError: nothing loadable under ``settings.model``.
    """

    name = "inpaint"

    def __init__(self, settings: FineTuneSettings, slices: Sequence[LabelledSlice], held_out: Sequence[LabelledSlice] = ()) -> None:
        self.settings = settings
        self.model = load_inpainter(ModelSpec("inpainter", settings.model), torch.device(settings.device))
        self.process = forward_process(self.model.scheduler)
        self.prediction_type = str(self.process.config.prediction_type)
        self.slices, self.held_out = list(slices), lesions_to_show(held_out, slices)
        self.modules: Mapping[str, nn.Module] = {"unet": self.model.unet}
        if settings.text_encoder:
            self.modules = {**self.modules, "text_encoder": self.model.text_encoder}
        self.adapters: dict[str, Any] = {}
        for part, network in self.modules.items():
            if settings.lora:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(settings.seed)
                    targets = UNET_ATTENTION if part == "unet" else CLIP_ATTENTION
                    self.adapters[part] = add_adapters(network, targets, settings.rank)
            else:
                network.requires_grad_(True)
        is_small = sum(p.numel() for p in self.model.unet.parameters()) < SMALL
        self.rate = RATES[(is_small, settings.lora)]
        self.trains_decoder = self._needs_decoder(is_small) if settings.decoder is None else settings.decoder
        if self.trains_decoder:
            decoder = decoder_modules(self.model)
            for network in decoder.values():
                network.requires_grad_(True)
            self.modules = {**self.modules, **decoder}

    def _needs_decoder(self, is_small: bool) -> bool:
        """A small model's decoder is trained where it does not know the images; of a large one, and with LoRA, when asked to."""
        if not is_poor(self.model, SliceCropSampler(self.slices, self.model.size_px, self.settings.seed)):
            return False
        trains = is_small and not self.settings.lora
        logger.warning("its decoder is trained too (--no-decoder leaves it)" if trains else "--decoder trains its decoder too")
        return trains

    def reseed(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.ring = EncodedRing(SliceCropSampler(self.slices, self.model.size_px, seed), self._encode)

    def _context(self, captions: list[str]) -> Tensor:
        drop = torch.rand(len(captions), generator=self.generator) < TEXT_DROPOUT
        texts = ["" if bool(d) else text for d, text in zip(drop, captions, strict=True)]
        if self.settings.text_encoder:
            self.model.forget_prompts()  # states of an older text encoder
        states = self.model.encode_text(texts)
        if self.settings.text_encoder:
            self.model.forget_prompts()  # they hold this step's graph
        return states

    @torch.no_grad()
    def _encode(self, images: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        """Latents, mask at their size, latents of the masked image, and for the decoder's training the images."""
        if self.model.takes_mask:
            latents, masked = self.model.encode(torch.cat([images, images * (masks < 0.5)])).chunk(2)
        else:
            latents = masked = self.model.encode(images)
        encoded = (latents, self.model.latent_mask(masks), masked)
        return (*encoded, images) if self.trains_decoder else encoded

    def loss(self, progress: float = 0.0) -> Tensor:
        (latents, mask, masked, *images), captions = self.ring.batch(self.settings.batch_size)
        alphas = self.process.alphas_cumprod
        steps = torch.randint(len(alphas), (len(latents),), generator=self.generator)
        noise = torch.randn(latents.shape, generator=self.generator).to(latents)
        timesteps = steps.to(latents.device)
        noisy = self.process.add_noise(latents, noise, timesteps)
        if self.prediction_type == "v_prediction":
            target = self.process.get_velocity(latents, noise, timesteps)
        else:
            target = noise if self.prediction_type == "epsilon" else latents
        seen = torch.cat([noisy, mask, masked], 1) if self.model.takes_mask else noisy
        predicted = self.model.denoise(seen, timesteps, self._context(captions))
        alpha_bar = alphas[steps].to(latents.device)
        loss = lesion_weighted_loss(predicted.float(), target.float(), mask.float(), alpha_bar, self.prediction_type)
        return loss + decoder_loss(self.model, latents, images[0], self.generator) if images else loss

    def draw(self, file: Path) -> None:
        self.model.forget_prompts()
        draw_inpainted(self.model, self.held_out, file, seed=self.settings.seed)

    def write(self, folder: Path) -> None:
        """A plain diffusers folder with merged weights; with LoRA the adapter alone in ``folder/adapter`` too."""
        from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline

        part = folder / "training" / "part"
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
            pipeline.save_pretrained(part, safe_serialization=True)
        if self.adapters:
            self._write_adapter(pipeline_class, part / "adapter")
        elif (folder / "adapter" / ADAPTER_NOTE).is_file():
            shutil.rmtree(folder / "adapter")  # of an earlier run: it does not belong to this model
        replace_parts(part, folder)

    def _write_adapter(self, pipeline_class: Any, folder: Path) -> None:
        """In diffusers' format: ``pipeline.load_lora_weights(folder)`` takes it."""
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        layers = {
            f"{part}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(getattr(self.model, part)))
            for part in self.adapters
        }
        pipeline_class.save_lora_weights(str(folder), **layers)
        note = {"base": self.settings.model, "rank": self.settings.rank, "alpha": self.settings.rank, "parts": sorted(self.adapters)}
        (folder / ADAPTER_NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
