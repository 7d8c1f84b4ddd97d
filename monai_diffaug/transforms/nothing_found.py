"""The validator turned round: an edit is accepted when no lesion is found where it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from monai.config.type_definitions import NdarrayOrTensor
from torch import Tensor

from monai_diffaug.transforms.latent_validate import LatentValidate, Verdict

__all__ = ["NothingFound"]


class NothingFound(LatentValidate):
    """Accept an edit when the validator finds no lesion under its mask: the judge of erased lesions and of repainted normal tissue.

    Each connected part of the mask is judged alone, so that a small lesion that is still there is not hidden by large ones that are gone.
    An edit is accepted when the prediction (> 0.5) covers at most ``Validator.max_false_positive`` of every part. The score is 1 minus the
    largest share. Predictions outside the mask do not count. Of several channels the largest prediction counts.

    Args:
        judge: source of the validator, or a ready ``LatentValidate``, whose options, window, plane and device then count.
        window, plane, device: as in ``LatentValidate``.

    >>> image, mask = torch.full((1, 64, 64), 0.2), torch.zeros(1, 64, 64)
    >>> mask[:, 24:40, 24:40] = 1
    >>> bright = NothingFound(LatentValidate(lambda crops: (crops[:, :1] > 0).float(), window=(0, 1)))
    >>> bright(image, mask).accepted, bright(image + 0.7 * mask, mask).reason
    (True, 'the validator still finds a lesion on 1.00 of a part of the mask > 0.05')
    """

    def __init__(
        self,
        judge: Any = "tiny",
        *,
        window: tuple[float, float] | None = None,
        plane: str = "axial",
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(judge, LatentValidate):
            super().__init__(judge.spec, judge.min_dice, window=judge.window, plane=judge.plane, device=judge.device, options=judge.options)
        else:
            super().__init__(judge, window=window, plane=plane, device=device)

    def _pooled(self, probabilities: Tensor) -> Tensor:
        """The largest of the channels' predictions: a lesion that one contrast still shows is not gone."""
        return probabilities.amax(0)

    def __call__(
        self,
        image: NdarrayOrTensor,
        mask: NdarrayOrTensor,
        original: NdarrayOrTensor | None = None,
        *,
        known: NdarrayOrTensor | None = None,
        seed: int = 0,
        min_dice: float | None = None,
        prompt: str = "",
    ) -> Verdict:
        """Judge an edit; arguments and errors as in ``LatentValidate``, ``min_dice`` is not used."""
        verdict = super().__call__(image, mask, original, known=known, seed=seed, min_dice=min_dice, prompt=prompt)
        region = torch.as_tensor(mask).to(verdict.predicted.device).ne(0).any(0, keepdim=True)
        if not region.any():
            return verdict
        share, most = largest_share(verdict.predicted, region), self.options.max_false_positive
        reason = f"the validator still finds a lesion on {share:.2f} of a part of the mask > {most:.2f}" if share > most else ""
        return replace(verdict, accepted=share <= most, score=1.0 - share, reason=reason)


def largest_share(predicted: Tensor, region: Tensor) -> float:
    """Share of the connected part of a region (1, H, W[, D]) bool of which the prediction covers most, in [0, 1].

    >>> region = torch.tensor([[[1, 1, 0, 1, 1]]]) > 0
    >>> largest_share(torch.tensor([[[0, 0, 0, 1, 0]]]) > 0, region)
    0.5
    """
    import numpy as np
    from scipy.ndimage import label

    inside = region[0].cpu().numpy()
    parts, count = label(inside, np.ones((3,) * inside.ndim))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    hits = np.bincount(parts[predicted[0].cpu().numpy() & inside], minlength=count + 1)[1:]
    return float((hits / sizes).max())
