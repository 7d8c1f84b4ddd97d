"""Train the latent screen: it predicts from latents what the validator will say of the decoded picture."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.latent_screen import ScreenConfig, ScreenNetwork, load_latent_screen, save_latent_screen, vae_fingerprint
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.models.validator import ValidatorModel, load_validator
from monai_diffaug.sampling.inpaint_latents import inpaint_latents
from monai_diffaug.sampling.seeding import slice_generators
from monai_diffaug.training.crop_sampler import CropBatch, CropSampler
from monai_diffaug.training.diffusion_loss import EncodedCrops, encode_crops
from monai_diffaug.training.encoded_ring import EncodedRing
from monai_diffaug.training.recipe import Recipe
from monai_diffaug.training.sample_pictures import draw_masks, evenly

__all__ = ["LatentScreenRecipe", "repaint", "screen_loss", "verdict"]

FRESH_RATE, TRAINED_RATE = 2e-3, 5e-4
REAL_MASKS_SHARE = 0.2  # of the run, at its beginning
REAL_SHARE = 0.25  # of the judged crops are not repainted
RUNS = ((1, 1.0), (2, 3.0), (4, 3.0), (6, 3.0), (8, 3.0))  # (steps, guidance scale) of the repainted crops
LONG_RUN = 4  # steps from which on the latents predicted halfway are learned too
JUDGED_FIRST, JUDGED_CAPACITY, JUDGED_RENEWAL = 256, 2048, 1.0
VERDICT_PURPOSE = 11  # the stream of ``seeding.slice_generators`` of the validator's noise


class LatentScreenRecipe(Recipe):
    """Train the screen on crops that the validator has judged.

    The loss is binary cross-entropy + soft Dice against the validator's probabilities (``screen_loss``). In the first fifth of the run the
    targets are the masks of real lesions. After that they are the validator's verdicts: a quarter on real crops, the rest on crops that
    the inpainter has repainted in few steps, normal tissue with a finding. Few steps go wrong more often, and the screen is there
    for what goes wrong. Of longer runs the latents predicted halfway are learned too, under the verdict on the end.

    The embedded screen::

        monai-diffaug train latent-screen --data datalist.json --model fresh --out runs/latent_screen --minutes 8 --batch-size 32

    ``settings.inpainter`` repaints and decodes; ``settings.validator`` judges. ``settings.model`` is "fresh", "tiny" or the folder of a
    screen for this inpainter's VAE.

    Raises:
        ModelSourceError: nothing loadable under one of the sources.
        ValueError: the screen was trained on the latents of another VAE.
    """

    name = "latent-screen"
    options = ("inpainter", "validator")

    def build(self) -> None:
        self.inpainter = load_inpainter(ModelSpec("inpainter", self.settings.inpainter), self.device)
        self.validator = load_validator(ModelSpec("validator", self.settings.validator), self.device)
        vae = self.inpainter.vae
        if self.is_fresh:
            config = ScreenConfig(latent_channels=int(vae.config.latent_channels), vae_fingerprint=vae_fingerprint(vae))
            self.network = ScreenNetwork(config).to(self.device)
        else:
            screen = load_latent_screen(ModelSpec("latent_screen", self.settings.model), self.device)
            screen.check_vae(vae)
            self.network = screen.network
        self.network.train().requires_grad_(True)
        self.modules, self.rate = {"network": self.network}, FRESH_RATE if self.is_fresh else TRAINED_RATE
        self.size_px = self.inpainter.size_px

    def reseed(self, seed: int) -> None:
        super().reseed(seed)
        self.real = EncodedRing(self.crops, self._real)
        self.judged: EncodedRing | None = None  # made when it is needed: it costs about 0.25 s per crop on a CPU

    def _real(self, batch: CropBatch) -> tuple[Tensor, ...]:
        """Latents of the crops, and the masks of their lesions at the size of the latents."""
        return self.inpainter.encode(batch.images), self.inpainter.latent_mask(batch.lesions).float()

    def _judged(self, batch: CropBatch) -> tuple[Tensor, ...]:
        """Latents at the end and halfway (or at the end again), and the validator's verdict on the end."""
        rng = self.crops.rng
        encoded = encode_crops(self.inpainter, batch.images, batch.hidden)
        steps, guidance_scale = RUNS[rng.randint(len(RUNS))]
        end, halfway = encoded.latents, None
        if rng.rand() >= REAL_SHARE:
            captions = with_findings(self.crops, batch)
            end, halfway = repaint(self.inpainter, encoded, captions, steps, guidance_scale, self.generator)
        target = verdict(self.inpainter, self.validator, end, int(rng.randint(2**31)))
        return end.float(), (end if halfway is None else halfway).float(), target

    def loss(self, progress: float = 0.0) -> Tensor:
        count = self.settings.batch_size
        if progress < REAL_MASKS_SHARE:
            (latents, target), _ = self.real.batch(count)
        else:
            if self.judged is None:
                self.judged = EncodedRing(self.crops, self._judged, JUDGED_FIRST, JUDGED_CAPACITY, JUDGED_RENEWAL)
            (end, halfway, target), _ = self.judged.batch(count)
            is_end = torch.rand(count, generator=self.generator) < 0.5
            latents = torch.where(is_end[:, None, None, None].to(end.device), end, halfway)
        return screen_loss(self.network(latents.float()), target)

    @torch.no_grad()
    def draw(self, file: Path) -> None:
        shown, size = evenly(self.held_out), (self.size_px,) * 2
        masks = []
        for chosen in shown:
            picture = F.interpolate(chosen.image.expand(3, -1, -1)[None], size, mode="bilinear", antialias=True, align_corners=False)
            probability = self.network(self.inpainter.encode(picture).float()).sigmoid()
            masks.append(F.interpolate(probability, chosen.lesion.shape, mode="bilinear", align_corners=False)[0] > 0.5)
        draw_masks(shown, masks, file, "result: where the screen predicts a finding, brightened")

    def write(self, folder: Path) -> None:
        """A folder that the ``source`` of a screen takes."""
        save_latent_screen(self.network, folder)


def with_findings(sampler: CropSampler, batch: CropBatch) -> list[str]:
    """The captions; those of normal tissue are replaced by one with a finding of the same anatomy, where there is one."""
    pairs = zip(batch.crops, batch.captions, strict=True)
    return [text if crop.has_lesion else sampler.lesion_caption(crop.origin) or text for crop, text in pairs]


@torch.no_grad()
def repaint(
    inpainter: Inpainter, crops: EncodedCrops, captions: list[str], steps: int, guidance_scale: float, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Repaint encoded crops inside their masks; the noise comes from a generator on the CPU.

    Returns:
        Scaled latents (N, 4, h, w); and, of runs of at least 4 steps, the clean latents that were predicted halfway. Outside the masks
        both are those of the crops.
    """
    halfway: list[Tensor] = []

    def keep(clean: Tensor) -> bool:
        halfway.append(clean)
        return True

    end = inpaint_latents(
        inpainter.denoiser(),
        inpainter.scheduler,
        clean=crops.latents,
        masked=crops.masked if inpainter.takes_mask else None,
        noise=torch.randn(crops.latents.shape, generator=generator).to(crops.latents),
        mask=crops.mask,
        soft=crops.mask,
        context=inpainter.encode_text(captions),
        negative_context=inpainter.encode_text([""]).expand(len(captions), -1, -1),
        guidance_scale=guidance_scale,
        num_inference_steps=steps,
        look=(0.5, keep) if steps >= LONG_RUN else None,
    )
    return end, halfway[0] if halfway else None


@torch.no_grad()
def verdict(inpainter: Inpainter, validator: ValidatorModel, latents: Tensor, seed: int) -> Tensor:
    """The validator's probabilities for the decoded latents, averaged to the latents' grid: (N, 1, h, w) in [0, 1]."""
    pictures = inpainter.decode(latents).clamp(-1, 1)
    if validator.size_px is not None and validator.size_px != pictures.shape[-1]:
        size = (validator.size_px, validator.size_px)
        pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)
    probability = validator.predict(pictures, slice_generators(seed, range(len(pictures)), VERDICT_PURPOSE))
    return F.adaptive_avg_pool2d(probability.float(), (latents.shape[-2], latents.shape[-1]))


def screen_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy + 1 - (2 sum p t + 1) / (sum p^2 + sum t^2 + 1) (Milletari et al., 3DV 2016), with p = sigmoid(logits).

    Args:
        logits: (N, 1, h, w).
        target: (N, 1, h, w) in [0, 1].

    Returns:
        A scalar.
    """
    probability = logits.sigmoid()
    overlap = (probability * target).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.square().sum((1, 2, 3)) + target.square().sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, target) + dice.mean()
