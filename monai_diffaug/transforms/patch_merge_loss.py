"""``PatchMergeLoss``: a segmentation loss on logits of a real and a synthetic image, merged patch by patch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.masks.patch_grid import ALPHA, PATCH_FRACTION, bernoulli, check_merge, grid_shape, upsampled

__all__ = ["PatchMergeLoss"]


class PatchMergeLoss(nn.Module):
    """DiceCE(f(x) R + f(x') (1 - R), y) with R = up_nearest(Bernoulli(alpha)) (EMIT-Diff, Zhang et al., TMI 2024).

    The real image x and the synthetic x' share one label y. The network sees both whole images and the loss merges its logits, so
    the network never sees a seam. ``RandPatchMerged`` merges images instead.

    Args:
        alpha: probability that a patch is taken from the real image.
        patch_fraction: side of a patch as a share of the image's side; 64 / 384 is the paper's 64 pixels at 384.
        criterion: loss of (logits, label); default MONAI's DiceCELoss, with a sigmoid for one logit channel, else with softmax
            and the label as class ids.

    Raises:
        ValueError: alpha outside [0, 1] or patch_fraction outside (0, 1].

    >>> logits, label = torch.full((2, 1, 48, 48), 9.0), torch.ones(2, 1, 48, 48)
    >>> loss = PatchMergeLoss(alpha=0.6)
    >>> float(loss(logits, logits, label)) < 0.01 < float(loss(logits, -logits, label))
    True
    """

    def __init__(
        self,
        alpha: float = ALPHA,
        patch_fraction: float = PATCH_FRACTION,
        *,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_merge(alpha, patch_fraction)
        self.alpha = alpha
        self.patch_fraction = patch_fraction
        self.criterion = criterion
        self._binary = DiceCELoss(sigmoid=True)
        self._classes = DiceCELoss(softmax=True, to_onehot_y=True)

    def forward(self, real: Tensor, synthetic: Tensor, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            real: (B, N, H, W[, D]) logits of the real images.
            synthetic: logits of their synthetic twins, same shape.
            target: (B, 1, H, W[, D]) label that both share.
            generator: CPU generator of the merge; default torch's own.

        Raises:
            GridMismatchError: logits of different shapes.
        """
        if real.shape != synthetic.shape:
            raise GridMismatchError(
                f"logits of the real images {tuple(real.shape)} and of the synthetic ones {tuple(synthetic.shape)} differ; "
                "give both images the same spatial augmentation"
            )
        spatial = real.shape[2:]
        cells = bernoulli((real.shape[0], *grid_shape(spatial, self.patch_fraction)), self.alpha, generator)
        merged = torch.where(upsampled(cells, spatial).to(real.device), real, synthetic)
        criterion = self.criterion or (self._binary if real.shape[1] == 1 else self._classes)
        loss: Tensor = criterion(merged, target)
        return loss
