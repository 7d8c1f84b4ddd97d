"""Train the embedded autoencoder (KL, factor 4, 4 latent channels) on random crops of every modality.

``python -m monai_diffaug.training.embedded.train_vae --out runs/vae --minutes 12`` trains encoder and decoder;
``--freeze-encoder`` goes on with the decoder alone, which leaves the latent space as it is.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from monai_diffaug.training.checkpoint import Clock, Ema, cosine_rate, load_state, save_state
from monai_diffaug.training.crops import crop_squares
from monai_diffaug.training.embedded.command_line import parsed
from monai_diffaug.training.embedded.datasets import load_samples, names_without

logger = logging.getLogger(__name__)

SIZE_PX = 128
TRAIN_PX = 64  # no attention, so a quarter of the model's size trains as well and mixes more images a batch
KL_WEIGHT = 1e-6


def build_vae() -> AutoencoderKL:
    """The embedded autoencoder's architecture with fresh weights."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,  # 4 channels a group: a group of one channel would lose each channel's mean, and colour with it
        sample_size=SIZE_PX,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


class CropSampler:
    """Draws random crops, each modality equally often, scaled, rotated, mirrored and with a random gamma."""

    def __init__(self, split: str, seed: int, left_out: Collection[str] = ()) -> None:
        self.images = [
            torch.from_numpy(np.stack([s.image for s in load_samples(name, split)])).permute(0, 3, 1, 2) for name in names_without(left_out)
        ]
        self.generator = torch.Generator().manual_seed(seed)

    def _uniform(self, n: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=self.generator)

    def draw(self, n: int) -> Tensor:
        """(n, 3, TRAIN_PX, TRAIN_PX) in [-1, 1], on the scales at which the inpainter sees SIZE_PX crops."""
        which = torch.randint(len(self.images), (n,), generator=self.generator).tolist()
        picks = [int(torch.randint(len(self.images[w]), (1,), generator=self.generator)) for w in which]
        batch = torch.stack([self.images[w][p] for w, p in zip(which, picks, strict=True)]).float() / 255
        side = torch.exp(self._uniform(n, np.log(56.0), np.log(230.0))) * TRAIN_PX / SIZE_PX
        reach = (256 - side * 0.8).clamp_min(0) / 2
        centres = 127.5 + torch.stack([self._uniform(n, -1, 1), self._uniform(n, -1, 1)], -1) * reach[:, None]
        crops = crop_squares(batch, centres, side, TRAIN_PX, self._uniform(n, -0.3, 0.3), self._uniform(n, 0, 1) > 0.5)
        gamma = torch.exp(self._uniform(n, -0.3, 0.3))[:, None, None, None]
        return crops.clamp(0, 1) ** gamma * 2 - 1


def reconstruction_loss(out: Tensor, target: Tensor) -> Tensor:
    """L1 + squared error (weight 2) + L1 of the finite differences (keeps edges and speckle)."""
    gradient = F.l1_loss(out.diff(dim=-1), target.diff(dim=-1)) + F.l1_loss(out.diff(dim=-2), target.diff(dim=-2))
    return F.l1_loss(out, target) + 2 * F.mse_loss(out, target) + 0.5 * gradient


def train(
    out: Path,
    minutes: float,
    batch_size: int = 32,
    freeze_encoder: bool = False,
    bf16: bool = False,
    seed: int = 0,
    left_out: Collection[str] = (),
) -> AutoencoderKL:
    """Train for ``minutes`` of wall time (resumes what ``out`` holds) and write ``out/vae`` in diffusers layout.

    ``left_out`` names data sets that the model must not see.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    if freeze_encoder:
        vae = AutoencoderKL.from_pretrained(out / "vae")
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    vae.to(memory_format=torch.channels_last)
    ema = Ema(vae)
    optimizer = torch.optim.AdamW([p for p in vae.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    rate = cosine_rate(5e-4 if freeze_encoder else 1.5e-3, 1e-5)
    parts = {"vae": vae, "ema": ema, "optimizer": optimizer}
    state = out / ("decoder.ckpt" if freeze_encoder else "vae.ckpt")
    done = load_state(state, parts)
    sampler = CropSampler("train", seed + int(1000 * done), left_out)
    clock, step, recent = Clock(minutes, done), 0, 0.0
    while (progress := clock.progress()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate(progress)
        target = sampler.draw(batch_size).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            posterior = vae.encode(target).latent_dist
            latents = posterior.mode() if freeze_encoder else posterior.sample()
            decoded = vae.decode(latents).sample
        loss = reconstruction_loss(decoded.float(), target)
        if not freeze_encoder:
            loss = loss + KL_WEIGHT * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        ema.update(vae)
        step += 1
        recent = 0.98 * recent + 0.02 * float(F.mse_loss(decoded.detach().float(), target))
        if step % 100 == 0:
            psnr = 10 * np.log10(4 / max(recent / (1 - 0.98**step), 1e-12))
            logger.info("vae %.0f %% step %d PSNR(train, mean of MSE) %.2f dB", 100 * progress, step, psnr)
        if step % 500 == 0:
            save_state(state, parts, progress)
    save_state(state, parts, 1.0)
    result: AutoencoderKL = ema.module
    if not freeze_encoder:
        result.register_to_config(scaling_factor=measure_scaling_factor(result, sampler))
    result.save_pretrained(out / "vae")
    return result


@torch.no_grad()
def measure_scaling_factor(vae: AutoencoderKL, sampler: CropSampler, n: int = 256) -> float:
    """1 / standard deviation of the latents over ``n`` training crops."""
    latents = torch.cat([vae.encode(sampler.draw(32)).latent_dist.mode() for _ in range(n // 32)])
    return round(float(1 / latents.std()), 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/vae"))
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--freeze-encoder", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="faster on CPUs with AMX, slower on those without")
    parser.add_argument("--without", nargs="+", default=(), metavar="DATA_SET", help="data sets that the model must not see")
    args = parsed(parser)
    train(args.out, args.minutes, args.batch_size, args.freeze_encoder, args.bf16, left_out=args.without)


if __name__ == "__main__":
    main()
