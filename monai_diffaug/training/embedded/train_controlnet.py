"""Train a ControlNet for edges on a frozen inpainter.

``python -m monai_diffaug.training.embedded.train_controlnet --out runs/controlnet --minutes 30``

The ControlNet starts as a copy of the UNet's encoder with zero outputs (Zhang et al., ICCV 2023), so the first step is the
plain inpainter. Timesteps are drawn with more noise than usual, as in T2I-Adapter (Mou et al., AAAI 2024): late in the sampling
the latents show the edges themselves and nothing is left to learn. Three in ten captions are left empty, so that the
unconditional branch of guidance learns to keep the edges. Two in five crops are hidden whole: there the edges and the text are
all there is (EMIT-Diff's whole-slice mode).
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_diffaug.models.controlnet import ControlledDenoiser, build_controlnet
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec, tiny_folder
from monai_diffaug.training.checkpoint import Clock, Ema, cosine_rate, load_state, save_state
from monai_diffaug.training.embedded.command_line import parsed
from monai_diffaug.training.embedded.control_bank import ControlBank, build_missing_chunks
from monai_diffaug.training.embedded.embed import write_embedded
from monai_diffaug.training.embedded.train_inpaint import forward_process, velocity_loss

__all__ = ["control_loss", "embed_controlnet", "noisy_steps", "train"]

logger = logging.getLogger(__name__)

TEXT_DROPOUT = 0.3
EMBEDDING_WIDTHS = (8, 16, 32, 64)  # edges are simple pictures; a quarter of diffusers' widths keeps the step cheap
PEAK_RATE = 4e-4
FRESH_FACTOR = 3.0  # the layers that start from zero or noise learn faster than the copy of the encoder
FRESH = "controlnet_"  # diffusers' prefix of the layers that the UNet does not have


def control_loss(
    model: Inpainter, controlnet: Any, batch: tuple[Tensor, Tensor, Tensor, Tensor, list[str]], steps: Tensor, noise: Tensor
) -> Tensor:
    """Diffusion loss of the steered UNet; only the ControlNet has gradients.

    Args:
        model: frozen inpainter whose scheduler predicts the noise or the velocity.
        controlnet: the network in training.
        batch: (latents, mask, masked latents, control, captions), see ``ControlBank``.
        steps: (B,) timesteps.
        noise: (B, 4, h, w) standard normal.
    """
    latents, mask, masked, control, captions = batch
    process = forward_process(model.scheduler)
    noisy = process.add_noise(latents, noise, steps)
    with torch.no_grad():
        context = model.encode_text(captions)
    seen = torch.cat([noisy, mask, masked], 1) if model.takes_mask else noisy
    predicted = ControlledDenoiser(model, controlnet, control)(seen, steps, context)
    velocity = process.config.prediction_type == "v_prediction"
    target = process.get_velocity(latents, noise, steps) if velocity else noise
    return velocity_loss(predicted, target, mask, process.alphas_cumprod.to(steps.device)[steps])


def noisy_steps(count: int, timesteps: int, generator: torch.Generator | None = None) -> Tensor:
    """(count,) random timesteps with the density of T2I-Adapter's cubic sampling: (1 - u^3) T, u uniform."""
    return ((1 - torch.rand(count, generator=generator) ** 3) * timesteps).long().clamp_max(timesteps - 1)


def _optimizer(controlnet: Any) -> torch.optim.Optimizer:
    fresh = [p for name, p in controlnet.named_parameters() if name.startswith(FRESH)]
    copied = [p for name, p in controlnet.named_parameters() if not name.startswith(FRESH)]
    groups = [{"params": copied, "factor": 1.0}, {"params": fresh, "factor": FRESH_FACTOR}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-3)


def train(
    inpainter: str | Path,
    out: Path,
    minutes: float,
    *,
    bank_folder: Path | None = None,
    chunks: int = 4,
    chunk_size: int = 800,
    batch_size: int = 8,
    seed: int = 0,
) -> None:
    """Train for ``minutes`` (resumes what ``out`` holds) and write ``out/controlnet``, a folder that ``controlnet=`` takes.

    The state holds the ControlNet alone: a run may be resumed on an inpainter that has been trained further.

    Args:
        inpainter: "tiny" or a diffusers folder; it stays frozen.
        out: folder of the run.
        minutes: running time of the training, without the time that the bank takes.
        bank_folder: encoded crops; default ``out/bank``. Missing chunks are made first, by this inpainter's VAE.
        chunks: files of the bank.
        chunk_size: crops in each.
        batch_size: crops in a step.
        seed: of the training.
    """
    torch.manual_seed(seed)
    model = load_inpainter(ModelSpec("inpainter", str(inpainter)), torch.device("cpu"))
    folder = bank_folder or out / "bank"
    build_missing_chunks(model.vae, folder, chunks, chunk_size, model.size_px)
    bank = ControlBank(folder)
    controlnet = build_controlnet(model.unet, model.factor, widths=EMBEDDING_WIDTHS).train().requires_grad_(True)
    ema = Ema(controlnet)
    optimizer = _optimizer(controlnet)
    parts = {"model": controlnet, "ema": ema, "optimizer": optimizer}
    state = out / "controlnet.ckpt"
    done = load_state(state, parts)
    rate = cosine_rate(PEAK_RATE, 1e-6)
    torch.manual_seed(seed + int(1e6 * done))
    clock, step, recent = Clock(minutes, done), 0, 0.0
    while (progress := clock.progress()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate(progress) * group["factor"]
        batch = bank.batch_with_control(batch_size, TEXT_DROPOUT)
        steps = noisy_steps(batch_size, len(model.scheduler.alphas_cumprod))
        loss = control_loss(model, controlnet, batch, steps, torch.randn_like(batch[0]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), 1.0)
        optimizer.step()
        ema.update(controlnet)
        step += 1
        recent = 0.99 * recent + 0.01 * float(loss.detach())
        if step % 50 == 0:
            logger.info("controlnet %.0f %% step %d loss %.4f", 100 * progress, step, recent / (1 - 0.99**step))
        if step % 200 == 0:
            save_state(state, parts, progress)
            export(ema, out / "controlnet")
    save_state(state, parts, 1.0)
    export(ema, out / "controlnet")
    logger.info("controlnet: %d steps in this run", step)


def export(ema: Ema, folder: Path) -> None:
    """Write the averaged weights as ``ControlNetModel.from_pretrained`` loads them."""
    network: Any = ema.module
    network.save_pretrained(folder, safe_serialization=True)


def embed_controlnet(source: Path, target: Path) -> int:
    """Write ``source`` (a ControlNet folder) to ``target`` as float16 safetensors; returns the bytes written."""
    from diffusers import ControlNetModel

    return write_embedded(ControlNetModel.from_pretrained(source, torch_dtype=torch.float16, local_files_only=True), target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inpainter", default="tiny", help="'tiny' or a diffusers folder; it stays frozen")
    parser.add_argument("--out", type=Path, default=Path("runs/controlnet"))
    parser.add_argument("--bank", type=Path, help="folder of encoded crops; default OUT/bank")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--chunk-size", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--embed", action="store_true", help="write the result into the package in half precision")
    args = parsed(parser)
    train(
        args.inpainter,
        args.out,
        args.minutes,
        bank_folder=args.bank,
        chunks=args.chunks,
        chunk_size=args.chunk_size,
        batch_size=args.batch_size,
    )
    if args.embed:
        size = embed_controlnet(args.out / "controlnet", tiny_folder("controlnet"))
        logger.info("embedded ControlNet: %.1f MB", size / 1e6)


if __name__ == "__main__":
    main()
