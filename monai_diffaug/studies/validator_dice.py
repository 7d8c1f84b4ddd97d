"""How well the embedded validator finds real lesions, keeps quiet on normal tissue, and refuses bad masks."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.masks.shapes import largest_component
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.models.validator import Validator, load_validator
from monai_diffaug.sampling.seeding import slice_generators
from monai_diffaug.training.crops import crop_squares
from monai_diffaug.training.embedded.datasets import SOURCES, load_samples
from monai_diffaug.training.embedded.train_validator import MIN_AREA_PX, SIZE_PX, LesionCropSampler, lesion_square
from monai_diffaug.transforms.latent_validate import LatentValidate

__all__ = ["accept_rule", "false_alarm_rate", "lesion_dice"]

CONTEXT = 2.0
FALSE_ALARM_SHARE = 0.02  # of the crop's area: less is a speck, not a lesion
SHIFT_SHARE = 0.5  # of the mask's longer side


def lesion_crops(name: str, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Mask-centred crops of the lesions of a source: images (N, 3, 128, 128) in [-1, 1] and masks (N, 1, 128, 128) bool."""
    images, masks = [], []
    for sample in load_samples(name, split):
        for _, whole in sample.masks():
            mask = largest_component(whole)
            if mask.sum() < MIN_AREA_PX:
                continue
            centre, side, _ = lesion_square(mask, CONTEXT)
            stacked = torch.from_numpy(np.concatenate([sample.image.astype(np.float32) / 255, mask[..., None]], -1)).float()
            cut = crop_squares(stacked.permute(2, 0, 1)[None], torch.from_numpy(centre)[None].float(), torch.tensor([side]), SIZE_PX)
            images.append(cut[:, :3] * 2 - 1)
            masks.append(cut[:, 3:] > 0.5)
    if not images:
        return torch.zeros(0, 3, SIZE_PX, SIZE_PX), torch.zeros(0, 1, SIZE_PX, SIZE_PX, dtype=torch.bool)
    chosen = np.random.RandomState(0).permutation(len(images))[:limit]
    return torch.cat([images[i] for i in chosen]), torch.cat([masks[i] for i in chosen])


def predict(validator: Validator, images: Tensor, seed: int = 0, batch_size: int = 16) -> Tensor:
    """Masks (N, 1, h, w) bool of crops."""
    generators = slice_generators(seed, range(len(images)))
    parts = [validator.predict(images[i : i + batch_size], generators[i : i + batch_size]) > 0.5 for i in range(0, len(images), batch_size)]
    return torch.cat(parts) if parts else torch.zeros_like(images[:, :1], dtype=torch.bool)


def lesion_dice(split: str = "validation", *, model: str = "tiny", limit: int | None = None) -> dict[str, float]:
    """Mean Dice of predicted and real masks in mask-centred crops, by source, in [0, 1].

    Args:
        split: "validation" or "train".
        model: a source of ``load_validator``.
        limit: lesions of a source at most, drawn with a fixed seed.
    """
    validator = shared_model(spec_of("validator", model), "cpu", load_validator)
    result = {}
    for source in SOURCES:
        images, masks = lesion_crops(source.name, split, limit)
        if len(images):
            found = predict(validator, images)
            overlap, total = (found & masks).sum((1, 2, 3)), found.sum((1, 2, 3)) + masks.sum((1, 2, 3))
            result[source.name] = float((2 * overlap / total).mean())
    return result


def false_alarm_rate(split: str = "validation", *, model: str = "tiny", n: int = 128) -> float:
    """Share of normal breast ultrasound crops, untouched, in which more than 2 % of the area is called a lesion."""
    validator = shared_model(spec_of("validator", model), "cpu", load_validator)
    sampler = LesionCropSampler(split, 0, sources=("breast_ultrasound",), normal_share=1.0, counterfeit_share=0.0)
    found = predict(validator, sampler.draw(n).images)
    return float((found.float().mean((1, 2, 3)) > FALSE_ALARM_SHARE).float().mean())


def accept_rule(
    split: str = "validation", *, model: str = "tiny", limit: int | None = 48, rule: LatentValidate | None = None
) -> dict[str, float]:
    """Precision and recall of the accept rule on breast ultrasound, good and deliberately bad samples in equal number.

    Good: a real lesion with its own mask. Bad: normal tissue under a lesion's mask ("empty"), a lesion with its mask moved by half of
    its longer side ("shifted").

    Returns:
        "precision", "recall" and the accepted share of each kind: "good", "empty", "shifted".
    """
    judge = rule or LatentValidate(model)
    images, masks = lesion_crops("breast_ultrasound", split, limit)
    normal = LesionCropSampler(split, 1, sources=("breast_ultrasound",), normal_share=1.0, counterfeit_share=0.0)
    tissue = normal.draw(len(images)).images
    accepted: dict[str, list[bool]] = defaultdict(list)
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        columns = torch.nonzero(mask[0].any(0)).flatten()
        rows = torch.nonzero(mask[0].any(1)).flatten()
        extent = max(int(columns[-1] - columns[0]), int(rows[-1] - rows[0])) + 1
        shifted = torch.roll(mask, round(SHIFT_SHARE * extent), 2)
        for kind, picture, region in (("good", image, mask), ("empty", tissue[i], mask), ("shifted", image, shifted)):
            accepted[kind].append(judge(picture, region, seed=i).accepted)
    shares = {kind: float(np.mean(values)) for kind, values in accepted.items()}
    wrong = (shares["empty"] + shares["shifted"]) / 2
    return {"precision": shares["good"] / max(shares["good"] + wrong, 1e-9), "recall": shares["good"], **shares}
