"""Train the autoencoder whose latents the other models work on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_diffaug.models.progress_bars import without_progress_bars
from monai_diffaug.models.sources import CONFIG_FILE, load_pretrained, locate, require_files
from monai_diffaug.training.crop_sampler import CropSampler
from monai_diffaug.training.decoder_loss import reconstruction_loss
from monai_diffaug.training.embedded.architectures import build_vae
from monai_diffaug.training.recipe import Recipe
from monai_diffaug.training.sample_pictures import draw_reconstructions

__all__ = ["VaeRecipe", "load_vae"]

KL_WEIGHT = 1e-6
FRESH_RATE, TRAINED_RATE = 1.5e-3, 5e-4
ADVICE = "give 'tiny', a folder that 'monai-diffaug train vae' wrote, or a diffusers model folder"
SCALE_BATCHES, SCALE_BATCH_SIZE = 8, 32


def load_vae(source: str) -> Any:
    """Load a diffusers AutoencoderKL: "tiny", its folder, or the folder or hub id of an inpainter.

    Raises:
        ModelSourceError: no autoencoder there.
        ValueError: an autoencoder of another kind, or weights that cannot be read.
    """
    from diffusers import AutoencoderKL

    top = locate("inpainter", source, advice=ADVICE, hub_files=(("vae/*",),))
    folder = top / "vae" if (top / "vae" / CONFIG_FILE).is_file() else top
    require_files(folder, (CONFIG_FILE,), ADVICE)
    kind = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("_class_name")
    if kind != "AutoencoderKL":
        raise ValueError(f"{folder} holds a {kind}, expected an AutoencoderKL")
    return load_pretrained(AutoencoderKL, folder, torch_dtype=torch.float32)


class VaeRecipe(Recipe):
    """Train the autoencoder on crops from anywhere on the slices, at half of the model's size; no lesion is needed.

    The loss is mean |d| + 2 mean d^2 + 0.5 (mean |D_x d| + mean |D_y d|) of the error d of the decoded crop, and 1e-6 of the
    Kullback-Leibler divergence of the posterior from N(0, I) (Rombach et al., CVPR 2022, appendix G; without their discriminator).
    With ``freeze_encoder`` the decoder alone is trained on the mode of the posterior: the latents stay what they are. With
    ``texture_weight`` W the loss is increased by W times ``texture_loss``, which makes the images less smooth and costs some PSNR.

    The embedded autoencoder::

        monai-diffaug train vae --data datalist.json --model fresh --out runs/vae --minutes 30 --batch-size 16

    A decoder that keeps more texture, for the same latents::

        monai-diffaug train vae --data datalist.json --model tiny --freeze-encoder --texture-weight 0.15 --out runs/vae_texture

    ``settings.model`` is "fresh", "tiny", or the source of an autoencoder or of an inpainter.

    Raises:
        ModelSourceError: no autoencoder under ``settings.model``.
        ValueError: it is of another kind.
    """

    name = "vae"
    options = ("freeze_encoder", "texture_weight")
    crop_options = {"needs_lesion": False}

    def build(self) -> None:
        self.vae: Any = (build_vae() if self.is_fresh else load_vae(self.settings.model)).to(self.device).requires_grad_(True)
        if self.device.type == "cpu":
            self.vae = self.vae.to(memory_format=torch.channels_last)
        if self.settings.freeze_encoder:
            for part in (self.vae.encoder, self.vae.quant_conv):
                part.requires_grad_(False)
        self.modules, self.rate = {"vae": self.vae}, FRESH_RATE if self.is_fresh else TRAINED_RATE
        self.size_px = int(self.vae.config.sample_size) // 2

    def _draw(self, sampler: CropSampler, count: int) -> Tensor:
        crops = torch.stack([sampler.draw_anywhere(scale=0.5) for _ in range(count)]).to(self.device)
        return crops.contiguous(memory_format=torch.channels_last) if self.device.type == "cpu" else crops

    def loss(self, progress: float = 0.0) -> Tensor:
        target = self._draw(self.crops, self.settings.batch_size)
        with torch.set_grad_enabled(not self.settings.freeze_encoder):
            posterior = self.vae.encode(target).latent_dist
        latents = posterior.mode() if self.settings.freeze_encoder else posterior.sample(self.generator)
        decoded = self.vae.decode(latents).sample.float()
        loss = reconstruction_loss(decoded, target, self.settings.texture_weight)
        return loss if self.settings.freeze_encoder else loss + KL_WEIGHT * posterior.kl().mean()

    def draw(self, file: Path) -> None:
        draw_reconstructions(self.vae, self.held_out or self.slices, file)

    @torch.no_grad()
    def _scaling_factor(self) -> float:
        """1 / standard deviation of the latents of training crops."""
        sampler = self.sampler(self.settings.seed)
        latents = [self.vae.encode(self._draw(sampler, SCALE_BATCH_SIZE)).latent_dist.mode() for _ in range(SCALE_BATCHES)]
        return round(float(1 / torch.cat(latents).std()), 5)

    def write(self, folder: Path) -> None:
        """A folder that ``--vae`` takes; unless the encoder was frozen, its scaling factor is measured again."""
        if not self.settings.freeze_encoder:
            self.vae.register_to_config(scaling_factor=self._scaling_factor())
        with without_progress_bars():
            self.vae.save_pretrained(folder, safe_serialization=True)
