"""Train the latent screen: it learns to say of latents what the full validator says of their decoded picture.

``python -m monai_diffaug.training.embedded.train_latent_screen --bank runs/bank --out runs/latent_screen --minutes 8``

Resumes what ``--out`` holds. Before the clock starts, ``--crops`` crops of the bank (real training crops with their captions) are judged
by the validator, kept in ``--out``: a quarter as they are, the rest repainted by the inpainter in a few steps, where normal tissue under
a mask is painted over with a finding. Few steps go wrong more often, and what goes wrong is what the screen is for. Of longer runs the
clean latents that are predicted halfway are learned too, under the verdict on the end. The first part of the run learns from all crops
of the bank with their real masks, the rest from the judged ones.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.latent_screen import ScreenConfig, ScreenNetwork, save_latent_screen, vae_fingerprint
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.models.validator import Validator, load_validator
from monai_diffaug.prompts import NORMAL, vocabulary_of
from monai_diffaug.sampling.inpaint_latents import inpaint_latents
from monai_diffaug.sampling.seeding import slice_generators
from monai_diffaug.training.checkpoint import Clock, Ema, cosine_rate, load_state, save_state
from monai_diffaug.training.embedded.command_line import parsed
from monai_diffaug.training.embedded.datasets import SOURCES
from monai_diffaug.training.embedded.train_inpaint import LatentBank

__all__ = [
    "JudgedBank",
    "LatentCrops",
    "judge",
    "load_bank",
    "painted",
    "screen_loss",
    "shows_finding",
    "train",
    "with_findings",
]

logger = logging.getLogger(__name__)

CHUNK_SIZE, JUDGED_AT_ONCE = 160, 16
REAL_SHARE = 0.25  # of the judged crops
RUNS = ((1, 1.0), (2, 3.0), (4, 3.0), (6, 3.0), (8, 3.0))  # (steps, guidance scale) of what is painted
LONG_RUN = 4  # steps from which on there is a halfway
REAL_MASKS_SHARE = 0.2  # of the run: the bank's masks are grown by up to 3 px, so the validator's word comes last
PEAK_RATE = 2e-3
JUDGE_PURPOSE = 11  # the stream of seeding.slice_generators that the validator's noise comes from


class LatentCrops(NamedTuple):
    """Crops of a bank.

    Attributes:
        latents: (N, 4, h, w) scaled latents of the crop.
        masked: (N, 4, h, w) of the crop with the mask greyed out.
        mask: (N, 1, h, w) in {0, 1}.
        captions: what is under each mask.
    """

    latents: Tensor
    masked: Tensor
    mask: Tensor
    captions: list[str]

    def rows(self, chosen: Sequence[int]) -> LatentCrops:
        """Some of them, float32."""
        index = torch.as_tensor(list(chosen))
        tensors = (self.latents[index].float(), self.masked[index].float(), self.mask[index].float())
        return LatentCrops(*tensors, [self.captions[i] for i in chosen])


def load_bank(folder: Path) -> LatentCrops:
    """The chunks ``train-*.pt`` that ``monai_diffaug.training.embedded.latent_bank`` wrote: training groups only.

    Raises:
        FileNotFoundError: there are none.
    """
    bank = LatentBank(folder)
    return LatentCrops(bank.tensors["latents"], bank.tensors["masked"], bank.tensors["mask"], bank.captions)


def shows_finding(caption: str) -> bool:
    """The caption names a finding that the data sets outline: the bank's mask is a mask of it."""
    return any(finding in caption for source in SOURCES for finding in source.findings.values())


def with_findings(captions: Sequence[str], others: Sequence[str], rng: np.random.RandomState) -> list[str]:
    """The captions, those of normal tissue replaced by one of the ``others`` with a finding of the same anatomy and modality."""
    words = {(vocabulary_of(source.modality).modality, source.anatomy) for source in SOURCES if source.findings}
    result = []
    for caption in captions:
        same = [pair for pair in words if NORMAL in caption and all(word in caption for word in pair)]
        fitting = [other for other in others if same and shows_finding(other) and all(word in other for word in same[0])]
        result.append(fitting[rng.randint(len(fitting))] if fitting else caption)
    return result


@torch.no_grad()
def painted(
    inpainter: Inpainter, crops: LatentCrops, steps: int, guidance_scale: float, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """The crops repainted inside their masks, as their captions say.

    Args:
        inpainter: repaints.
        crops: N of the bank.
        steps, guidance_scale: of the sampler.
        generator: of the noise, on the CPU.

    Returns:
        Scaled latents (N, 4, h, w), and, of runs that are long enough, those that were predicted halfway. Outside the masks both are
        the crops'.
    """
    latents, masked, mask = (value.to(inpainter.device, inpainter.dtype) for value in crops[:3])
    halfway: list[Tensor] = []

    def keep(clean: Tensor) -> bool:
        halfway.append(clean)
        return True

    result = inpaint_latents(
        inpainter.denoiser(),
        inpainter.scheduler,
        clean=latents,
        masked=masked if inpainter.takes_mask else None,
        noise=torch.randn(latents.shape, generator=generator).to(latents),
        mask=mask,
        soft=mask,
        context=inpainter.encode_text(crops.captions),
        negative_context=inpainter.encode_text([""]).expand(len(latents), -1, -1),
        guidance_scale=guidance_scale,
        num_inference_steps=steps,
        look=(0.5, keep) if steps >= LONG_RUN else None,
    )
    return result, halfway[0] if halfway else None


@torch.no_grad()
def judge(inpainter: Inpainter, validator: Validator, latents: Tensor, seed: int) -> Tensor:
    """The validator's probabilities for the decoded latents, averaged to the latents' grid: (N, 1, h, w) in [0, 1]."""
    pictures = inpainter.decode(latents).clamp(-1, 1)
    if validator.size_px is not None and validator.size_px != pictures.shape[-1]:
        size = (validator.size_px, validator.size_px)
        pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)
    probability = validator.predict(pictures, slice_generators(seed, range(len(pictures)), JUDGE_PURPOSE))
    return F.adaptive_avg_pool2d(probability, (latents.shape[-2], latents.shape[-1]))


class JudgedBank:
    """Latents with the validator's word on them, made once; chunks on disk are read again by a resumed run.

    Args:
        folder: of the chunks.
        bank: crops to draw from.
        inpainter: repaints and decodes.
        validator: judges.
        crops: how many.
        seed: of choice and noise.
    """

    def __init__(self, folder: Path, bank: LatentCrops, inpainter: Inpainter, validator: Validator, crops: int, seed: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        chunks: list[dict[str, Tensor]] = []
        for index in range(-(-crops // CHUNK_SIZE)):
            path = folder / f"judged-{index:03d}.pt"
            if not path.is_file():
                count = min(CHUNK_SIZE, crops - index * CHUNK_SIZE)
                chunk = self._chunk(bank, inpainter, validator, count, seed + index)
                torch.save(chunk, path.with_suffix(".part"))
                path.with_suffix(".part").replace(path)
                logger.info("%s: %d crops", path, count)
            chunks.append(torch.load(path, map_location="cpu", weights_only=True))
        self.latents = torch.cat([chunk["latents"] for chunk in chunks])
        self.target = torch.cat([chunk["target"] for chunk in chunks])

    @staticmethod
    def _chunk(bank: LatentCrops, inpainter: Inpainter, validator: Validator, count: int, seed: int) -> dict[str, Tensor]:
        rng, generator = np.random.RandomState(seed), torch.Generator().manual_seed(seed)
        parts: list[tuple[Tensor, Tensor]] = []
        for start in range(0, count, JUDGED_AT_ONCE):
            crops = bank.rows(rng.randint(len(bank.captions), size=min(JUDGED_AT_ONCE, count - start)).tolist())
            steps, guidance_scale = RUNS[rng.randint(len(RUNS))]
            latents, halfway = crops.latents, None
            if rng.rand() >= REAL_SHARE:
                crops = crops._replace(captions=with_findings(crops.captions, bank.captions, rng))
                latents, halfway = painted(inpainter, crops, steps, guidance_scale, generator)
            target = judge(inpainter, validator, latents, seed + start).to("cpu", torch.float16)
            parts += [(seen.to("cpu", torch.float16), target) for seen in (latents, halfway) if seen is not None]
        return {"latents": torch.cat([latents for latents, _ in parts]), "target": torch.cat([target for _, target in parts])}

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Latents (count, 4, h, w) and the validator's probabilities (count, 1, h, w), float32."""
        chosen = torch.randint(len(self.latents), (count,))
        return self.latents[chosen].float(), self.target[chosen].float()


def draw_real(bank: LatentCrops, count: int) -> tuple[Tensor, Tensor]:
    """Latents (count, 4, h, w) of the bank and the masks (count, 1, h, w) of what they show, empty on normal tissue."""
    crops = bank.rows(torch.randint(len(bank.captions), (count,)).tolist())
    seen = torch.tensor([float(shows_finding(caption)) for caption in crops.captions])
    return crops.latents, crops.mask * seen[:, None, None, None]


def screen_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy + soft Dice of logits (N, 1, h, w) against probabilities (N, 1, h, w); a scalar."""
    probability = logits.sigmoid()
    overlap = (probability * target).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.square().sum((1, 2, 3)) + target.square().sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, target) + dice.mean()


def train(
    bank_folder: Path,
    out: Path,
    minutes: float,
    *,
    inpainter: Any = "tiny",
    validator: Any = "tiny",
    batch_size: int = 32,
    crops: int = 1200,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> ScreenNetwork:
    """Train for ``minutes`` of running time (resumes what ``out`` holds) and write ``out/latent_screen``; returns the averaged network.

    Args:
        bank_folder: of ``monai_diffaug.training.embedded.latent_bank``, encoded with the inpainter's VAE.
        out: folder of the run.
        minutes: of training; the judged crops are made before.
        inpainter: a source of ``DiffusionLocalInpaint``'s ``model=``, or a live model.
        validator: a source of ``LatentValidated``'s ``model=``, or a live one: whose verdict is learned.
        batch_size: crops a step.
        crops: how many are judged, about 0.25 s each on one CPU thread.
        device: where to train.
        seed: of weights, crops and order; a resumed run goes on with other draws.

    Raises:
        FileNotFoundError: the bank is empty.
    """
    torch.manual_seed(seed)
    painter = shared_model(spec_of("inpainter", inpainter), device, load_inpainter)
    judging = shared_model(spec_of("validator", validator), device, load_validator)
    bank = load_bank(bank_folder)
    network = ScreenNetwork(ScreenConfig(latent_channels=bank.latents.shape[1], vae_fingerprint=vae_fingerprint(painter.vae))).to(device)
    ema = Ema(network, 0.995)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-2)
    parts = {"network": network, "ema": ema, "optimizer": optimizer}
    state, folder = out / "latent_screen.ckpt", out / "latent_screen"
    done = load_state(state, parts)
    judged = JudgedBank(out / "bank", bank, painter, judging, crops, seed)
    rate = cosine_rate(PEAK_RATE, 1e-5)
    torch.manual_seed(seed + int(1e6 * done))
    clock, step, recent = Clock(minutes, done), 0, 0.0
    while (progress := clock.progress()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate(progress)
        latents, target = draw_real(bank, batch_size) if progress < REAL_MASKS_SHARE else judged.draw(batch_size)
        loss = screen_loss(network(latents.to(device)), target.to(device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        ema.update(network)
        step += 1
        recent = 0.98 * recent + 0.02 * float(loss.detach())
        if step % 50 == 0:
            logger.info("latent screen %.1f %% step %d loss %.4f", 100 * progress, step, recent / (1 - 0.98**step))
        if step % 250 == 0:
            save_state(state, parts, progress)
            save_latent_screen(cast(ScreenNetwork, ema.module), folder)
    save_state(state, parts, 1.0)
    save_latent_screen(cast(ScreenNetwork, ema.module), folder)
    return cast(ScreenNetwork, ema.module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bank", type=Path, default=Path("runs/bank"))
    parser.add_argument("--out", type=Path, default=Path("runs/latent_screen"))
    parser.add_argument("--inpainter", default="tiny", help="a source of DiffusionLocalInpaint's model=")
    parser.add_argument("--validator", default="tiny", help="a source of LatentValidated's model=: whose verdict is learned")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--crops", type=int, default=1200, help="how many crops the validator judges before the clock starts")
    parser.add_argument("--device", default="cpu")
    args = parsed(parser)
    train(
        args.bank,
        args.out,
        args.minutes,
        inpainter=args.inpainter,
        validator=args.validator,
        batch_size=args.batch_size,
        crops=args.crops,
        device=args.device,
    )


if __name__ == "__main__":
    main()
