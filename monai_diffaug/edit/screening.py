"""Refuse a candidate by its latents, before its sampling is over or between sampling and decoding."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.edit.repaint import Candidate, Look
from monai_diffaug.edit.validation_options import Screen
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.latent_screen import LatentScreen, load_latent_screen
from monai_diffaug.models.registry import shared_model, spec_of

__all__ = ["CandidateScreen", "Refused", "latent_core", "screen_dice"]

SLICES_AT_ONCE = 32


class Refused(NamedTuple):
    """A candidate that the screen refused.

    Attributes:
        score: Dice of what the screen finds in the latents with the mask.
        reason: the same in words.
        decode: makes the sample after all, as it would have been without a screen.
        leave: the sample as it was, with records of the candidate.
    """

    score: float
    reason: str
    decode: Callable[[], dict[Hashable, Any]]
    leave: Callable[[], dict[Hashable, Any]]


class CandidateScreen:
    """Runs the inpainting of a sample to its end only if the screen finds in its latents what was asked for.

    The screen looks once: after a share of the sampling steps, at the clean latents that are predicted by then, which spares a refused
    candidate the other steps too; or at the latents of the finished run. The second also where a sample's slices do not fit into one
    batch of the model.

    Args:
        options: source, least Dice and time of the look.
    """

    def __init__(self, options: Screen) -> None:
        self.spec = spec_of("latent_screen", options.source)
        self.min_dice = options.min_dice
        self.after = options.after

    def run(self, inpaint: Any, data: Mapping[Hashable, Any]) -> dict[Hashable, Any] | Refused:
        """As ``inpaint(data)``, but for candidates that are refused.

        Args:
            inpaint: a ``DiffusionLocalInpaintd``.
            data: its sample.
        """
        inpaint.randomize()
        if not inpaint._do_transform:
            return dict(inpaint.edit(data, seed=inpaint.seed, triggered=False))
        seed: int = inpaint.seed
        seen: list[tuple[Any, float]] = []

        def wanted(candidate: Candidate) -> bool:
            score = self.score(inpaint.inpaint.inpainter_on(candidate.stack.slices.device), candidate)
            seen.append((candidate.stack, score))
            return score >= self.min_dice

        sampled = inpaint.sample(data, seed=seed, look=Look(self.after, wanted) if self.after < 1 else None)
        cut_short = any(score < self.min_dice for _, score in seen)
        for one in sampled.values():
            if isinstance(one.outcome, Candidate) and not any(stack is one.outcome.stack for stack, _ in seen):
                wanted(one.outcome)
        score = min((score for _, score in seen), default=1.0)
        if score >= self.min_dice:
            return dict(inpaint.finish(data, sampled))
        return Refused(
            score,
            f"refused before decoding: Dice {score:.2f} of the finding in the latents < {self.min_dice:.2f}",
            lambda: dict(inpaint.edit(data, seed=seed) if cut_short else inpaint.finish(data, sampled)),
            lambda: dict(inpaint.leave(data, sampled)),
        )

    def score(self, model: Inpainter, candidate: Candidate) -> float:
        """``screen_dice`` with the screen of the spec, on the inpainter's device.

        Raises:
            ModelSourceError: the screen is not there.
            ValueError: the screen was trained on another VAE's latents.
        """
        if not candidate.patches or not bool(torch.isfinite(candidate.latents).all()):
            return 1.0  # nothing to judge: what becomes of it says why
        screen = shared_model(self.spec, model.device, load_latent_screen)
        screen.check_vae(model.vae)
        return screen_dice(screen, model.factor, candidate)


def screen_dice(screen: LatentScreen, factor: int, candidate: Candidate) -> float:
    """Dice in [0, 1] of what the screen finds in the latents (> 0.5) with the mask, areas pooled over the slices.

    Args:
        screen: judges.
        factor: pixels of a patch per pixel of its latents.
        candidate: with one touched slice or more.
    """
    probability = torch.cat([screen.predict(part) for part in candidate.latents.split(SLICES_AT_ONCE)]).cpu()
    found, target = probability > 0.5, latent_core(torch.stack([patch.core for patch in candidate.patches]).cpu(), factor)
    area = torch.tensor([(patch.roi.side / patch.core.shape[-1]) ** 2 for patch in candidate.patches])
    both = ((found & target).sum((1, 2, 3)) * area).sum()
    total = ((found.sum((1, 2, 3)) + target.sum((1, 2, 3))) * area).sum()
    return float(2 * both / total)


def latent_core(core: Tensor, factor: int) -> Tensor:
    """Masks (P, 1, h, w) in {0, 1} at latent size, bool: pixels that they cover by half, or touch where they cover none by half."""
    covered = F.avg_pool2d(core, factor) > 0.5
    touched = F.max_pool2d(core, factor) > 0
    return torch.where(covered.flatten(1).any(1)[:, None, None, None], covered, touched)
