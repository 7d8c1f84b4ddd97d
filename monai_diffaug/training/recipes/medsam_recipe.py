"""Train MedSAM: jittered boxes in, masks out, on whole slices and on squares around a lesion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.masks.boxes import Box, box_around, enlarged
from monai_diffaug.models.medsam import TINY_CONFIG, MedSAM, build_sam, config_of, load_medsam, prompt_with_boxes, save_sam
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.crops import cut_square
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.lora import SAM_ATTENTION, add_adapters, merged
from monai_diffaug.training.recipe import Recipe
from monai_diffaug.training.run_settings import TrainingInputError
from monai_diffaug.training.sample_pictures import draw_masks, evenly

__all__ = ["MedSAMRecipe", "Prompts", "intersection_over_union", "mask_loss"]

FRESH_RATE, SMALL_RATE, LARGE_RATE = 1e-3, 2e-4, 1e-5
SMALL = 20e6  # parameters
JITTER_PX = 20.0  # outward, of a slice 1024 wide, as MedSAM was trained
JITTER_SHARE = 0.04  # of the box's sides, inward or outward
PROMPTS_PER_IMAGE = 2  # the encoder costs as much as five prompts, so each embedding is used twice
DECOY_SHARE = 0.15  # of the images: one box holds nothing labelled, and the IoU head learns to predict 0
DECOY_SIDE_SHARE = (0.04, 0.35)  # of the image
WHOLE_SHARE = 0.6  # of the draws show about the whole slice, as at inference
MIN_SHARE = 0.3  # smallest square, as a share of the slice's longer side
MIN_MASK_PX = 9
TURN_RAD, LOG_GAMMA = 0.4, 0.4
GREY_SHARE, INVERTED_SHARE, NOISE_SHARE = 0.2, 0.1, 0.3
TRIES = 50


class Prompts(NamedTuple):
    """One image with P boxes."""

    image: Tensor  # (3, S, S) in [0, 1]
    masks: Tensor  # (P, 1, S, S) in {0, 1}, the lesion of each box
    boxes: Tensor  # (P, 4) xyxy in pixels
    is_real: Tensor  # (P,) bool; False where a box is a decoy, whose mask does not count


class MedSAMRecipe(Recipe):
    """Train image encoder and mask decoder, or with LoRA adapters in the encoder's attention and the decoder whole.

    The loss of a prompt is soft Dice + 0.5 * cross-entropy of the mask (``mask_loss``) + (predicted IoU - IoU)^2, as in Segment Anything
    (Kirillov et al., ICCV 2023, appendix A) with Dice and cross-entropy instead of Dice and focal loss, as MedSAM has it (Ma et al., 2024).
    The prompt encoder stays as it is, as theirs does; with fresh weights it is trained too. With ``freeze_encoder`` the mask decoder alone
    is trained, so that a semantic controller that was trained on the encoder's features stays valid.

    The embedded MedSAM::

        monai-diffaug train medsam --data datalist.json --model fresh --out runs/medsam --minutes 54 --batch-size 4
        monai-diffaug train medsam --data datalist.json --model runs/medsam --freeze-encoder --out runs/medsam2 --rate 6e-4 --minutes 45

    ``settings.model`` is "fresh", "tiny", a ``.pth``, a folder or a hub id.

    Raises:
        ModelSourceError: no checkpoint under ``settings.model``.
        TrainingInputError: no slice shows a lesion.
    """

    name = "medsam"
    options = ("lora", "freeze_encoder")

    def uses(self, chosen: LabelledSlice) -> bool:
        """It shows a lesion."""
        return chosen.has_lesion

    def build(self) -> None:
        settings = self.settings
        if settings.lora and settings.freeze_encoder:
            raise TrainingInputError("--lora trains adapters of the encoder, which --freeze-encoder leaves as it is; leave one of them out")
        if self.is_fresh:
            self.model = MedSAM(build_sam(TINY_CONFIG), self.device, box_as_mask=bool(TINY_CONFIG["box_as_mask"]))
        else:
            self.model = load_medsam(ModelSpec("medsam", settings.model), self.device)
        self.sam, self.size_px = self.model.sam.float(), self.model.image_size
        self.config = {**config_of(self.sam.state_dict()), "box_as_mask": self.model.box_as_mask}
        self.config["decoder_heads"] = int(self.sam.mask_decoder.transformer.layers[0].self_attn.num_heads)
        parts = ("image_encoder", "mask_decoder", *(("prompt_encoder",) if self.is_fresh else ()))
        self.modules = {part: getattr(self.sam, part).requires_grad_(True) for part in parts}
        if settings.freeze_encoder or settings.lora:
            self.sam.image_encoder.requires_grad_(False)
        if settings.lora:
            add_adapters(self.sam.image_encoder, SAM_ATTENTION, settings.rank)
        is_small = sum(p.numel() for p in self.sam.parameters()) < SMALL
        self.rate = FRESH_RATE if self.is_fresh else SMALL_RATE if is_small else LARGE_RATE
        self.on_slice: dict[int, list[LabelledSlice]] = defaultdict(list)
        for each in self.slices:
            self.on_slice[id(each.stored)].append(each)
        self.sampler(settings.seed)  # raises where there is no lesion

    def draw_prompts(self) -> Prompts:
        """One image with ``PROMPTS_PER_IMAGE`` boxes; a slice with fewer lesions has boxes around the same lesion.

        Raises:
            TrainingInputError: no lesion is large enough at MedSAM's size.
        """
        rng, size = self.crops.rng, self.size_px
        for _ in range(TRIES):
            chosen = self.crops.draw_lesion()
            others = [s for s in self.on_slice[id(chosen.stored)] if s is not chosen]
            lesions = [chosen, *(others[i] for i in rng.permutation(len(others))[: PROMPTS_PER_IMAGE - 1])]
            image, covered = self._cut(lesions)
            masks = (covered > 0.5).float()
            visible = [m for m in masks[1:] if float(m.sum()) >= MIN_MASK_PX]
            if not visible:
                continue
            visible = [visible[i % len(visible)] for i in range(PROMPTS_PER_IMAGE)]
            boxes = [self._jittered(box_around(mask)) for mask in visible]
            is_real = [True] * PROMPTS_PER_IMAGE
            if rng.rand() < DECOY_SHARE and (decoy := self._decoy(masks[0])):
                boxes[-1], is_real[-1] = decoy, False
            return Prompts(self._recoloured(image), torch.stack(visible)[:, None], torch.tensor(boxes), torch.tensor(is_real))
        raise TrainingInputError(f"the lesions are smaller than {MIN_MASK_PX} pixels at MedSAM's size of {size}")

    def _cut(self, lesions: Sequence[LabelledSlice]) -> tuple[Tensor, Tensor]:
        """A square around the first lesion, or about the whole slice: image (3, S, S), and masks of all labels and of each lesion."""
        rng, first = self.crops.rng, lesions[0]
        ys, xs = np.nonzero(first.lesion)
        extent, longer = max(np.ptp(ys), np.ptp(xs)) + 1, max(first.lesion.shape)
        middle = np.array([(n - 1) / 2 for n in first.lesion.shape])
        side = longer * rng.uniform(0.9, 1.1)
        if rng.rand() > WHOLE_SHARE:
            side = max(longer * rng.uniform(MIN_SHARE, 1.0), min(1.2 * extent, longer))
            slack = max(side - extent, 0) / 2
            middle = np.array([(ys.min() + ys.max()) / 2, (xs.min() + xs.max()) / 2]) + rng.uniform(-slack, slack, 2)
        masks = torch.from_numpy(np.stack([first.labelled, *(s.lesion for s in lesions)])).float()
        stacked = torch.cat([(first.image.expand(3, -1, -1) + 1) / 2, masks])
        return cut_square(rng, stacked, middle, float(side), self.size_px, turn_rad=TURN_RAD, log_gamma=LOG_GAMMA)

    def _jittered(self, box: Box) -> Box:
        """MedSAM's enlargement by up to 20 px of 1024, and some relative to the box, inward too; never smaller than 2 pixels."""
        rng, (x0, y0, x1, y1), size = self.crops.rng, box, self.size_px
        relative = rng.uniform(-JITTER_SHARE, JITTER_SHARE, 4) * np.array([x1 - x0, y1 - y0] * 2) * 1024 / size
        left, top, right, bottom = enlarged(box, rng.uniform(-2, JITTER_PX, 4) + relative, (size, size))
        return min(left, (x0 + x1) / 2 - 1), min(top, (y0 + y1) / 2 - 1), max(right, (x0 + x1) / 2 + 1), max(bottom, (y0 + y1) / 2 + 1)

    def _decoy(self, labelled: Tensor) -> Box | None:
        """A box with nothing labelled in it; None where the drawn one has something."""
        rng, size = self.crops.rng, self.size_px
        width, height = rng.uniform(*DECOY_SIDE_SHARE, 2) * size
        x0, y0 = rng.uniform(0, size - width), rng.uniform(0, size - height)
        is_free = not bool(labelled[int(y0) : int(y0 + height) + 1, int(x0) : int(x0 + width) + 1].any())
        return (x0, y0, x0 + width, y0 + height) if is_free else None

    def _recoloured(self, image: Tensor) -> Tensor:
        """Sometimes grey, inverted or noisy; always with another contrast, then min-max to [0, 1] as at inference."""
        rng = self.crops.rng
        if rng.rand() < GREY_SHARE:
            image = image.mean(0, keepdim=True).expand(3, -1, -1)
        image = (image * rng.uniform(0.8, 1.25) + rng.uniform(-0.08, 0.08)).clamp(0, 1)
        if rng.rand() < INVERTED_SHARE:
            image = 1 - image
        if rng.rand() < NOISE_SHARE:
            noise = torch.from_numpy(rng.standard_normal((1, *image.shape[1:])).astype(np.float32))
            image = image + noise * rng.uniform(0.01, 0.05)
        low, high = image.amin(), image.amax()
        return (image - low) / (high - low).clamp_min(1e-8)

    def loss(self, progress: float = 0.0) -> Tensor:
        batch = [self.draw_prompts() for _ in range(self.settings.batch_size)]
        with torch.set_grad_enabled(not self.settings.freeze_encoder):
            embeddings = self.sam.image_encoder(torch.stack([prompts.image for prompts in batch]).to(self.device))
        return torch.stack([self._prompt_loss(e, prompts) for e, prompts in zip(embeddings, batch, strict=True)]).mean()

    def _prompt_loss(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        masks, is_real = prompts.masks.to(self.device), prompts.is_real.to(self.device)
        sparse, dense = prompt_with_boxes(self.sam, prompts.boxes.float().to(self.device), self.model.box_as_mask)
        positions = self.sam.prompt_encoder.get_dense_pe()
        logits, predicted_iou = self.sam.mask_decoder(embedding[None], positions, sparse, dense, multimask_output=False)
        overlap = torch.where(is_real, intersection_over_union(logits, masks), 0.0)
        losses = mask_loss(logits.float(), masks)[is_real].sum() + (predicted_iou[:, 0] - overlap).square().sum()
        return losses / len(is_real)

    def draw(self, file: Path) -> None:
        shown = evenly(self.held_out)
        predictions = []
        for chosen in shown:
            lesion = torch.from_numpy(chosen.lesion)
            size = (lesion.shape[0], lesion.shape[1])
            box = enlarged(box_around(lesion), [JITTER_PX / 2] * 4, size)
            mask, _ = self.model.decode(self.model.encode(chosen.image[None]), torch.tensor([box]), size)
            predictions.append(mask)
        draw_masks(shown, predictions, file, "result: MedSAM's mask for the box of the lesion, brightened")

    def write(self, folder: Path) -> None:
        """A folder that ``model=`` of ``MedSAMMaskd`` takes."""
        save_sam(merged(self.sam) if self.settings.lora else self.sam, self.config, folder)


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1) + 0.5 * (sum of the cross-entropy) / (sum t + 16), one number per prompt (P,).

    The cross-entropy is divided by the size of the mask: as a mean over 16 384 pixels a finding of 30 pixels would have no weight.

    Args:
        logits: (P, 1, h, w).
        masks: (P, 1, S, S) in {0, 1}.
    """
    targets = F.adaptive_avg_pool2d(masks, (logits.shape[-2], logits.shape[-1]))
    probability = logits.sigmoid()
    overlap = (probability * targets).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2, 3)) + targets.sum((1, 2, 3)) + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum((1, 2, 3))
    return dice + 0.5 * entropy / (targets.sum((1, 2, 3)) + 16)


@torch.no_grad()
def intersection_over_union(logits: Tensor, masks: Tensor) -> Tensor:
    """(P,) overlap of the thresholded masks, the target of the IoU head."""
    predicted, truth = logits > 0, F.adaptive_avg_pool2d(masks, (logits.shape[-2], logits.shape[-1])) > 0.5
    return (predicted & truth).sum((1, 2, 3)) / (predicted | truth).sum((1, 2, 3)).clamp_min(1)
