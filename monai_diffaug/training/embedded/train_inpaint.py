"""Train the embedded 9-channel inpainting UNet and its text encoder on a bank of latents.

``python -m monai_diffaug.training.embedded.train_inpaint --bank runs/bank --vae runs/vae/vae --out runs/inpaint --minutes 60``

v-prediction with zero terminal SNR (Lin et al. 2024, so that mean brightness is learned), min-SNR weighting
(Hang et al. 2023), 10 % empty prompts for classifier-free guidance, twice the weight under the mask.
"""

from __future__ import annotations

import argparse
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from monai_diffaug.training.checkpoint import Clock, Ema, cosine_rate, load_state, save_state
from monai_diffaug.training.embedded.command_line import parsed
from monai_diffaug.training.embedded.text_encoder import MAX_TOKENS, build_text_encoder, build_tokenizer

logger = logging.getLogger(__name__)

MIN_SNR_GAMMA = 5.0
TEXT_DROPOUT = 0.1


def build_unet() -> UNet2DConditionModel:
    """The embedded UNet's architecture with fresh weights: 9 channels in (latents, mask, masked latents), 4 out."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=9,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_scheduler() -> DDIMScheduler:
    """DDIM, v-prediction, zero terminal SNR, trailing timesteps."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@lru_cache(maxsize=4)  # each step asks for it
def forward_process(scheduler: Any) -> Any:
    """How a model's latents become noisy: the betas and prediction type of its folder, whatever sampler that names.

    Samplers such as Euler's scale their noise otherwise, and most of them know no velocity.
    """
    return DDPMScheduler.from_config(scheduler.config)


class LatentBank:
    """All chunks of a bank folder in memory; ``refresh`` adds chunks that have appeared since."""

    def __init__(self, folder: Path, split: str = "train") -> None:
        self.folder, self.split = folder, split
        self.seen: set[Path] = set()
        self.tensors: dict[str, Tensor] = {}
        self.captions: list[str] = []
        self.refresh()

    def refresh(self) -> None:
        for path in sorted(set(self.folder.glob(f"{self.split}-*.pt")) - self.seen):
            chunk = torch.load(path, map_location="cpu", weights_only=True)
            self.captions += chunk.pop("captions")
            for name, values in chunk.items():
                self.tensors[name] = torch.cat([self.tensors[name], values]) if name in self.tensors else values
            self.seen.add(path)
        if not self.seen:
            raise FileNotFoundError(f"no {self.split}-*.pt in {self.folder}; make it with training.embedded.latent_bank")

    def batch(self, size: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """(latents, mask, masked latents, captions) of ``size`` random crops, float32."""
        picks = torch.randint(len(self.captions), (size,))
        latents, mask, masked = (self.tensors[name][picks].float() for name in ("latents", "mask", "masked"))
        return latents, mask, masked, ["" if torch.rand(()) < TEXT_DROPOUT else self.captions[int(i)] for i in picks]


def lesion_weights(mask: Tensor) -> Tensor:
    """(B, 1, h, w) in [0, 1] -> weights that count the mask twice, with a mean of 1 in each sample."""
    weights: Tensor = (1 + mask) / (1 + mask).mean(dim=(1, 2, 3), keepdim=True)
    return weights


def velocity_loss(predicted: Tensor, target: Tensor, mask: Tensor, alpha_bar: Tensor) -> Tensor:
    """Mean squared error of v, min-SNR weighted (min(SNR, 5)/(SNR+1), floored so that SNR 0 still counts), mask twice."""
    snr = alpha_bar / (1 - alpha_bar).clamp_min(1e-8)
    weight = (torch.minimum(snr, torch.tensor(MIN_SNR_GAMMA)) + 1) / (snr + 1)
    return ((predicted - target).square() * lesion_weights(mask)).mean(dim=(1, 2, 3)).mul(weight).mean()


def train(bank_folder: Path, vae_folder: Path, out: Path, minutes: float, batch_size: int = 16, seed: int = 0) -> None:
    """Train for ``minutes`` (resumes what ``out`` holds) and write ``out/inpainter`` in diffusers layout."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(out / "inpainter" / "tokenizer")
    unet, text_encoder, scheduler = build_unet(), build_text_encoder(tokenizer), build_scheduler()
    alphas = scheduler.alphas_cumprod
    model = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    ema = Ema(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=1e-3)
    parts = {"model": model, "ema": ema, "optimizer": optimizer}
    state = out / "inpaint.ckpt"
    done = load_state(state, parts)
    rate = cosine_rate(6e-4, 1e-6)
    bank = LatentBank(bank_folder)
    torch.manual_seed(seed + int(1e6 * done))
    clock, step, recent = Clock(minutes, done), 0, 0.0
    while (progress := clock.progress()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate(progress)
        latents, mask, masked, captions = bank.batch(batch_size)
        tokens = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
        steps = torch.randint(0, len(alphas), (batch_size,))
        noise = torch.randn_like(latents)
        noisy = scheduler.add_noise(latents, noise, steps)
        context = text_encoder(tokens.input_ids)[0]
        predicted = unet(torch.cat([noisy, mask, masked], 1), steps, context).sample
        loss = velocity_loss(predicted, scheduler.get_velocity(latents, noise, steps), mask, alphas[steps])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
        step += 1
        recent = 0.99 * recent + 0.01 * float(loss.detach())
        if step % 50 == 0:
            logger.info("inpaint %.0f %% step %d loss %.4f", 100 * progress, step, recent / (1 - 0.99**step))
        if step % 200 == 0:
            save_state(state, parts, progress)
            export(ema, tokenizer, scheduler, vae_folder, out / "inpainter")
            bank.refresh()
    save_state(state, parts, 1.0)
    export(ema, tokenizer, scheduler, vae_folder, out / "inpainter")


def export(ema: Ema, tokenizer: object, scheduler: DDIMScheduler, vae_folder: Path, folder: Path) -> None:
    """Write the averaged weights as a folder that ``StableDiffusionInpaintPipeline.from_pretrained`` loads."""
    from diffusers import StableDiffusionInpaintPipeline

    parts: Any = ema.module
    pipeline = StableDiffusionInpaintPipeline(
        vae=AutoencoderKL.from_pretrained(vae_folder),
        text_encoder=parts["text_encoder"],
        tokenizer=tokenizer,
        unet=parts["unet"],
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bank", type=Path, default=Path("runs/bank"))
    parser.add_argument("--vae", type=Path, default=Path("runs/vae/vae"))
    parser.add_argument("--out", type=Path, default=Path("runs/inpaint"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parsed(parser)
    train(args.bank, args.vae, args.out, args.minutes, args.batch_size)


if __name__ == "__main__":
    main()
