"""Fine-tune MedSAM on the user's outlines: jittered boxes in, masks out, on whole slices and on squares around the lesion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from monai_diffaug.masks.boxes import box_around, enlarged
from monai_diffaug.models.medsam import MedSAM, config_of, load_medsam, prompt_with_boxes, save_sam
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.crops import cut_square
from monai_diffaug.training.embedded.train_medsam import intersection_over_union, mask_loss
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.lora import SAM_ATTENTION, add_adapters, merged
from monai_diffaug.training.model_folder import replace_parts
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError
from monai_diffaug.training.sample_pictures import draw_masks, evenly, lesions_to_show

__all__ = ["MedSAMRecipe"]

JITTER_PX = 20.0  # of a slice 1024 wide, as MedSAM was trained
WHOLE_SHARE = 0.6  # of the draws show about the whole slice, as at inference
MIN_SHARE = 0.3  # smallest square, as a share of the slice's longer side
MIN_MASK_PX = 9
JITTER_RAD, JITTER_LOG_GAMMA = 0.3, 0.3
TRIES = 50


class MedSAMRecipe:
    """Trains image encoder and mask decoder, or with LoRA adapters in the encoder's attention and the decoder whole.

    Args:
        settings: see ``FineTuneSettings``.
        slices: to train on; those of normal tissue are left out.
        held_out: shown in the sample pictures.

    Raises:
        ModelSourceError: no checkpoint under ``settings.model``.
        TrainingInputError: no slice shows a lesion.
    """

    name = "medsam"

    def __init__(self, settings: FineTuneSettings, slices: Sequence[LabelledSlice], held_out: Sequence[LabelledSlice] = ()) -> None:
        self.settings = settings
        self.model: MedSAM = load_medsam(ModelSpec("medsam", settings.model), torch.device(settings.device))
        self.sam = self.model.sam.float()
        self.config = {**config_of(self.sam.state_dict()), "box_as_mask": self.model.box_as_mask}
        self.config["decoder_heads"] = int(self.sam.mask_decoder.transformer.layers[0].self_attn.num_heads)
        encoder, decoder = self.sam.image_encoder, self.sam.mask_decoder
        if settings.lora:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                add_adapters(encoder, SAM_ATTENTION, settings.rank)
        else:
            encoder.requires_grad_(True)
        decoder.requires_grad_(True)
        self.modules: Mapping[str, nn.Module] = {"image_encoder": encoder, "mask_decoder": decoder}
        small = sum(p.numel() for p in self.sam.parameters()) < 20e6
        self.rate = 2e-4 if small else 1e-5
        self.slices = [s for s in slices if not s.is_normal]
        self.held_out = lesions_to_show(held_out, slices)
        if not self.slices:
            raise TrainingInputError("no image shows a lesion: at least one entry needs a label with one")

    def reseed(self, seed: int) -> None:
        self.rng = np.random.RandomState(seed % 2**32)

    def _draw_prompt(self) -> tuple[Tensor, Tensor, Tensor]:
        """Image (3, S, S) in [0, 1], mask (1, 1, S, S), box (1, 4) xyxy in pixels of it."""
        rng, size = self.rng, self.model.image_size
        for _ in range(TRIES):
            chosen = self.slices[rng.randint(len(self.slices))]
            ys, xs = np.nonzero(chosen.lesion)
            extent, longer = max(np.ptp(ys), np.ptp(xs)) + 1, max(chosen.lesion.shape)
            middle = np.array([(n - 1) / 2 for n in chosen.lesion.shape])
            side = longer * rng.uniform(0.9, 1.1)
            if rng.rand() > WHOLE_SHARE:
                side = max(longer * rng.uniform(MIN_SHARE, 1.0), min(1.2 * extent, longer))
                slack = max(side - extent, 0) / 2
                middle = np.array([(ys.min() + ys.max()) / 2, (xs.min() + xs.max()) / 2]) + rng.uniform(-slack, slack, 2)
            stacked = torch.cat([(chosen.image.expand(3, -1, -1) + 1) / 2, torch.from_numpy(chosen.lesion)[None].float()])
            image, coverage = cut_square(rng, stacked, middle, float(side), size, turn_rad=JITTER_RAD, log_gamma=JITTER_LOG_GAMMA)
            mask = coverage > 0.5
            if int(mask.sum()) < MIN_MASK_PX:
                continue
            low, high = image.amin(), image.amax()
            box = enlarged(box_around(mask[0]), rng.uniform(-2, JITTER_PX, 4), (size, size))
            return (image - low) / (high - low).clamp_min(1e-8), mask.float()[None], torch.tensor([box])
        raise TrainingInputError(f"the lesions are smaller than {MIN_MASK_PX} pixels at MedSAM's size of {size}")

    def loss(self, progress: float = 0.0) -> Tensor:
        images, masks, boxes = zip(*(self._draw_prompt() for _ in range(self.settings.batch_size)), strict=True)
        device = self.model.device
        embeddings = self.sam.image_encoder(torch.stack(images).to(device))
        positions = self.sam.prompt_encoder.get_dense_pe()
        losses = []
        for embedding, mask, box in zip(embeddings, masks, boxes, strict=True):
            sparse, dense = prompt_with_boxes(self.sam, box.to(device), self.model.box_as_mask)
            logits, quality = self.sam.mask_decoder(embedding[None], positions, sparse, dense, multimask_output=False)
            target = mask.to(device)
            overlap = intersection_over_union(logits, target)
            losses.append(mask_loss(logits.float(), target).sum() + (quality[:, 0] - overlap).square().sum())
        return torch.stack(losses).mean()

    def draw(self, file: Path) -> None:
        shown = evenly(self.held_out)
        found = []
        for chosen in shown:
            lesion = torch.from_numpy(chosen.lesion)
            size = (lesion.shape[0], lesion.shape[1])
            box = enlarged(box_around(lesion), [JITTER_PX / 2] * 4, size)
            mask, _ = self.model.decode(self.model.encode(chosen.image[None]), torch.tensor([box]), size)
            found.append(mask)
        draw_masks(shown, found, file, "result: what MedSAM outlines in the lesion's box, brightened")

    def write(self, folder: Path) -> None:
        part = folder / "training" / "part"
        plain = merged(self.sam) if self.settings.lora else self.sam
        save_sam(plain, self.config, part)
        replace_parts(part, folder)
