"""Reject a candidate by its latents, during sampling or between sampling and decoding."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.edit.denoise import Candidate, Look
from monai_diffaug.edit.validation_options import Screen
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.latent_screen import LatentScreen, load_latent_screen
from monai_diffaug.models.registry import shared_model, spec_of

__all__ = ["CandidateScreen", "Refused", "latent_core", "screen_dice"]

SLICES_AT_ONCE = 32


class Refused(NamedTuple):
    """A candidate that the screen rejected.

    Attributes:
        score: Dice of the screen's prediction in the latents and the mask.
        reason: the same in words.
        decode: makes the sample after all, as it would have been without a screen.
        leave: the sample as it was, with the records of the candidate.
    """

    score: float
    reason: str
    decode: Callable[[], dict[Hashable, Any]]
    leave: Callable[[], dict[Hashable, Any]]


class CandidateScreen:
    """Stop sampling early when the screen predicts rejection.

    The screen looks once: after a share of the sampling steps, at the clean latents predicted by then; or at the final latents
    (``after=1``). If the slices need several batches, it looks at the final latents in any case.

    Args:
        options: source, least Dice and time of the look.
    """

    def __init__(self, options: Screen) -> None:
        self.spec = spec_of("latent_screen", options.source)
        self.min_dice = options.min_dice
        self.after = options.after

    def run(self, inpaint: Any, data: Mapping[Hashable, Any]) -> dict[Hashable, Any] | Refused:
        """The result of ``inpaint(data)``, or the candidate that the screen rejected.

        Args:
            inpaint: a ``DiffusionLocalInpaintd``.
            data: its sample.
        """
        inpaint.randomize()
        if not inpaint._do_transform:
            return dict(inpaint.edit(data, seed=inpaint.seed, triggered=False))
        seed: int = inpaint.seed
        scores: list[tuple[Any, float]] = []  # (stack, score) of each candidate that was looked at

        def accepts(candidate: Candidate) -> bool:
            score = self.score(inpaint.inpaint.inpainter_on(candidate.stack.slices.device), candidate)
            scores.append((candidate.stack, score))
            return score >= self.min_dice

        pending = inpaint.denoise(data, seed=seed, look=Look(self.after, accepts) if self.after < 1 else None)
        is_cut_short = any(score < self.min_dice for _, score in scores)
        for each in pending.values():
            if isinstance(each.outcome, Candidate) and not any(stack is each.outcome.stack for stack, _ in scores):
                accepts(each.outcome)
        score = min((score for _, score in scores), default=1.0)
        if score >= self.min_dice:
            return dict(inpaint.finish(data, pending))
        return Refused(
            score,
            f"refused before decoding: Dice {score:.2f} of the finding in the latents < {self.min_dice:.2f}",
            lambda: dict(inpaint.edit(data, seed=seed) if is_cut_short else inpaint.finish(data, pending)),
            lambda: dict(inpaint.leave(data, pending)),
        )

    def score(self, model: Inpainter, candidate: Candidate) -> float:
        """``screen_dice`` with the screen of the spec, on the inpainter's device.

        Raises:
            ModelSourceError: the screen cannot be loaded.
            ValueError: the screen was trained on the latents of another VAE.
        """
        if not candidate.patches or not bool(torch.isfinite(candidate.latents).all()):
            return 1.0  # nothing to judge: decoding reports the reason
        screen = shared_model(self.spec, model.device, load_latent_screen)
        screen.check_vae(model.vae)
        return screen_dice(screen, model.factor, candidate)


def screen_dice(screen: LatentScreen, factor: int, candidate: Candidate) -> float:
    """Dice in [0, 1] of the screen's prediction in the latents (> 0.5) and the mask, areas pooled over the slices.

    Args:
        screen: predicts the finding.
        factor: pixels of a patch per pixel of its latents.
        candidate: with at least one touched slice.
    """
    probability = torch.cat([screen.predict(part) for part in candidate.latents.split(SLICES_AT_ONCE)]).cpu()
    prediction, target = probability > 0.5, latent_core(torch.stack([patch.core for patch in candidate.patches]).cpu(), factor)
    area = torch.tensor([(patch.roi.side / patch.core.shape[-1]) ** 2 for patch in candidate.patches])
    both = ((prediction & target).sum((1, 2, 3)) * area).sum()
    total = ((prediction.sum((1, 2, 3)) + target.sum((1, 2, 3))) * area).sum()
    return float(2 * both / total)


def latent_core(core: Tensor, factor: int) -> Tensor:
    """Masks (P, 1, h, w) in {0, 1} at latent size, bool: latent pixels covered by more than half, or if there is none, all touched ones.

    >>> core = torch.zeros(2, 1, 4, 4)
    >>> core[0, :, :, :3], core[1, :, 0, 0] = 1, 1
    >>> latent_core(core, 2).int().tolist()
    [[[[1, 0], [1, 0]]], [[[1, 0], [0, 0]]]]
    """
    covered = F.avg_pool2d(core, factor) > 0.5
    touched = F.max_pool2d(core, factor) > 0
    return torch.where(covered.flatten(1).any(1)[:, None, None, None], covered, touched)
