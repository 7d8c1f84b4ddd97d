"""Train the semantic controller and its adapter for an inpainter, whose UNet stays as it is.

``python -m monai_diffaug.training.embedded.train_semantic_controller --inpainter runs/inpaint/inpainter --out runs/semantic --minutes 40``

Two phases (MedSoft-Diffusion 2025): first the controller alone learns to predict the features of the unmasked image from
those of the masked one; then controller and adapter learn together, from the diffusion loss as well, with 10 % of the samples
without text and without semantic tokens, so that classifier-free guidance drops both at once.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.models.semantic_controller import SemanticModel, build_semantic_model, patch_mask, save_semantic_controller
from monai_diffaug.training.checkpoint import Clock, Ema, cosine_rate, load_state, save_state
from monai_diffaug.training.embedded.command_line import parsed
from monai_diffaug.training.embedded.latent_bank import MaskedCropSampler
from monai_diffaug.training.embedded.train_inpaint import forward_process, lesion_weights, velocity_loss

__all__ = [
    "DISTILLATION_SHARE",
    "PEAK_RATE",
    "Batch",
    "SemanticBank",
    "build_chunk",
    "diffusion_loss",
    "distillation_loss",
    "encode_crops",
    "train",
    "training_loss",
]

logger = logging.getLogger(__name__)

CONDITION_DROPOUT = 0.1
DISTILLATION_SHARE = 0.4  # of the run
PEAK_RATE = 5e-4
CHUNK_SIZE = 200
ENCODED_AT_ONCE = 8


class Batch(NamedTuple):
    """Some crops of the bank.

    Attributes:
        latents: (B, 4, h, w) scaled latents of the image.
        masked: (B, 4, h, w) of the masked image.
        mask: (B, 1, h, w) at latent size.
        seen: (B, P + 1, E) patch features of the masked image and, last, its global one.
        whole: (B, P + 1, E) of the unmasked image.
        hidden: (B, P, 1) which patches the mask hides.
        captions: B prompts.
    """

    latents: Tensor
    masked: Tensor
    mask: Tensor
    seen: Tensor
    whole: Tensor
    hidden: Tensor
    captions: list[str]


@torch.no_grad()
def encode_crops(inpainter: Inpainter, model: SemanticModel, images: Tensor, masks: Tensor, captions: list[str]) -> Batch:
    """What a step needs of crops (B, 3, s, s) in [-1, 1] and their masks (B, 1, s, s) in {0, 1}."""
    both = torch.cat([images, images * (masks < 0.5)])
    patches, pooled = model.encoder(both)
    whole, seen = torch.cat([patches, pooled[:, None]], dim=1).chunk(2)
    latents, masked = inpainter.encode(both).chunk(2)
    coarse = inpainter.latent_mask(masks)
    return Batch(latents, masked, coarse, seen, whole, patch_mask(masks.to(coarse), model.config.grid), captions)


def build_chunk(inpainter: Inpainter, model: SemanticModel, sampler: MaskedCropSampler, count: int) -> dict[str, Any]:
    """What ``Batch`` holds, of ``count`` random crops, float16."""
    chunk: dict[str, list[Tensor]] = {name: [] for name in Batch._fields if name != "captions"}
    captions: list[str] = []
    for start in range(0, count, ENCODED_AT_ONCE):
        images, masks, texts = zip(*(sampler.draw_crop() for _ in range(min(ENCODED_AT_ONCE, count - start))), strict=True)
        batch = encode_crops(inpainter, model, torch.stack(images), torch.stack(masks), list(texts))
        for name, parts in chunk.items():
            parts.append(getattr(batch, name).to("cpu", torch.float16))
        captions += batch.captions
    return {**{name: torch.cat(parts) for name, parts in chunk.items()}, "captions": captions}


class SemanticBank:
    """Crops with their features, encoded once and kept in memory; chunks on disk are read again by a resumed run."""

    def __init__(self, folder: Path, inpainter: Inpainter, model: SemanticModel, crops: int, seed: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        chunks = []
        for index in range(-(-crops // CHUNK_SIZE)):
            path = folder / f"train-{index:03d}.pt"
            if not path.is_file():
                count = min(CHUNK_SIZE, crops - index * CHUNK_SIZE)
                chunk = build_chunk(inpainter, model, MaskedCropSampler("train", seed + 5000 + index), count)
                torch.save(chunk, path.with_suffix(".part"))
                path.with_suffix(".part").replace(path)
                logger.info("%s: %d crops", path, count)
            chunks.append(torch.load(path, map_location="cpu", weights_only=True))
        self.captions = [caption for chunk in chunks for caption in chunk.pop("captions")]
        self.tensors = {name: torch.cat([chunk.pop(name) for chunk in chunks]) for name in list(chunks[0])}

    def batch(self, size: int, like: Tensor) -> Batch:
        """``size`` random crops on the device and in the type of ``like``."""
        picks = torch.randint(len(self.captions), (size,))
        return Batch(**{n: v[picks].to(like) for n, v in self.tensors.items()}, captions=[self.captions[int(i)] for i in picks])


def distillation_loss(predicted: Tensor, pooled: Tensor, whole: Tensor, hidden: Tensor) -> Tensor:
    """Sum over hidden patches of their MSE / (their number + 1), plus the MSE of the global feature; mean of the batch.

    Args:
        predicted: (B, P, E) predicted patch features.
        pooled: (B, E) predicted global feature.
        whole: (B, P + 1, E) features of the unmasked image, the global one last.
        hidden: (B, P, 1) in {0, 1}.
    """
    of_patch = (predicted - whole[:, :-1]).square().mean(dim=2) * hidden[..., 0]
    patches = of_patch.sum(dim=1) / (hidden.sum(dim=(1, 2)) + 1)
    return (patches + (pooled - whole[:, -1]).square().mean(dim=1)).mean()


def diffusion_loss(scheduler: Any, predicted: Tensor, latents: Tensor, noise: Tensor, steps: Tensor, mask: Tensor) -> Tensor:
    """The loss the embedded inpainter is trained with; for epsilon models the mean squared error, mask twice.

    Raises:
        ValueError: a prediction type other than "v_prediction" and "epsilon".
    """
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        alphas = scheduler.alphas_cumprod.to(latents.device)
        return velocity_loss(predicted, scheduler.get_velocity(latents, noise, steps), mask, alphas[steps])
    if kind != "epsilon":
        raise ValueError(f"the inpainter predicts {kind!r}; training needs a model with prediction_type 'v_prediction' or 'epsilon'")
    return ((predicted - noise).square() * lesion_weights(mask)).mean()


def training_loss(
    inpainter: Inpainter, model: SemanticModel, batch: Batch, *, distils: bool, generator: torch.Generator | None = None
) -> Tensor:
    """The loss of the phase: the distillation's, then the diffusion's beside it, with a tenth of the conditions dropped.

    The diffusion's alone lets the predicted features drift from the real ones: after 25 minutes of it they were twice as far from them
    as a constant is (``monai-diffaug evaluate semantic``).

    Args:
        inpainter: frozen.
        model: in training.
        batch: on the inpainter's device.
        distils: the first phase.
        generator: of the second phase's draws, on the CPU; None takes torch's own.
    """
    with torch.no_grad():
        text = inpainter.encode_text(batch.captions)
    predicted, pooled = model.parts["controller"](batch.seen[:, :-1], batch.seen[:, -1], text, batch.hidden)
    distillation = distillation_loss(predicted, pooled, batch.whole, batch.hidden)
    if distils:
        return distillation
    kept = torch.rand(len(batch.captions), generator=generator) >= CONDITION_DROPOUT
    return denoising_step(inpainter, model, batch, kept, generator) + distillation


def denoising_step(
    inpainter: Inpainter, model: SemanticModel, batch: Batch, kept: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """The diffusion loss of a batch; where ``kept`` (B,) is False, text and semantic tokens are dropped together."""
    scheduler = forward_process(inpainter.scheduler)
    steps = torch.randint(0, len(scheduler.alphas_cumprod), (len(kept),), generator=generator).to(batch.latents.device)
    noise = torch.randn(batch.latents.shape, generator=generator).to(batch.latents)
    with torch.no_grad():
        said = inpainter.encode_text(batch.captions)
        context = inpainter.encode_text([text if keep else "" for text, keep in zip(batch.captions, kept.tolist(), strict=True)])
    tokens = model.tokens_of(batch.seen[:, :-1], batch.seen[:, -1], said, batch.hidden) * kept[:, None, None].to(batch.seen)
    noisy = scheduler.add_noise(batch.latents, noise, steps)
    inputs = torch.cat([noisy, batch.mask, batch.masked], dim=1) if inpainter.takes_mask else noisy
    unet = model.unet_of(inpainter.unet)
    predicted = unet(inputs, steps, encoder_hidden_states=context, added_cond_kwargs={"image_embeds": [tokens[:, None]]}).sample
    return diffusion_loss(scheduler, predicted, batch.latents, noise, steps, batch.mask)


def train(
    inpainter_source: Any,
    out: Path,
    minutes: float,
    *,
    encoder: str = "tiny",
    batch_size: int = 16,
    crops: int = 2400,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Path:
    """Train for ``minutes`` (resumes what ``out`` holds) and write ``out/semantic_controller``; returns that folder.

    Args:
        inpainter_source: a source of ``DiffusionLocalInpaint``'s ``model=``, or a live model.
        out: folder of the run; the crops are encoded into ``out/bank`` before the clock starts.
        minutes: of both phases together.
        encoder: source of the MedSAM whose features are predicted.
        batch_size: crops a step.
        crops: size of the bank, about 0.14 MB each.
        device: where to train.
        seed: of weights and order; a resumed run goes on with other draws.
    """
    torch.manual_seed(seed)
    inpainter = shared_model(spec_of("inpainter", inpainter_source), device, load_inpainter)
    model = build_semantic_model(inpainter, encoder=encoder)
    ema = Ema(model.parts)
    optimizer = torch.optim.AdamW(model.parts.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=1e-3)
    parts = {"model": model.parts, "ema": ema, "optimizer": optimizer}
    state, folder = out / "semantic_controller.ckpt", out / "semantic_controller"
    done = load_state(state, parts)
    bank = SemanticBank(out / "bank", inpainter, model, crops, seed)
    rate = cosine_rate(PEAK_RATE, 1e-6)
    like = model.adapter.position.detach()
    torch.manual_seed(seed + int(1e6 * done))
    clock, step, recent = Clock(minutes, done), 0, 0.0
    distilled = done >= DISTILLATION_SHARE
    while (progress := clock.progress()) < 1:
        distil = progress < DISTILLATION_SHARE
        if not distil and not distilled:
            distilled, recent, step = True, 0.0, 0
        span = DISTILLATION_SHARE if distil else 1 - DISTILLATION_SHARE
        for group in optimizer.param_groups:
            group["lr"] = rate((progress if distil else progress - DISTILLATION_SHARE) / span)
        batch = bank.batch(batch_size, like)
        loss = training_loss(inpainter, model, batch, distils=distil)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parts.parameters(), 1.0)
        optimizer.step()
        ema.update(model.parts)
        step += 1
        recent = 0.98 * recent + 0.02 * float(loss.detach())
        if step % 50 == 0:
            phase = "distillation" if distil else "diffusion"
            logger.info("semantic %.1f %% %s step %d loss %.4f", 100 * progress, phase, step, recent / (1 - 0.98**step))
        if step % 200 == 0:
            save_state(state, parts, progress)
            save_semantic_controller(model.config, ema.module, folder)
    save_state(state, parts, 1.0)
    save_semantic_controller(model.config, ema.module, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inpainter", default="tiny", help="a source of DiffusionLocalInpaint's model=")
    parser.add_argument("--encoder", default="tiny", help="the MedSAM whose features are predicted")
    parser.add_argument("--out", type=Path, default=Path("runs/semantic"))
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--crops", type=int, default=2400)
    parser.add_argument("--device", default="cpu")
    args = parsed(parser)
    train(
        args.inpainter,
        args.out,
        args.minutes,
        encoder=args.encoder,
        batch_size=args.batch_size,
        crops=args.crops,
        device=args.device,
    )


if __name__ == "__main__":
    main()
