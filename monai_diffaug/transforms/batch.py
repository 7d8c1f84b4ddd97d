"""Repaint on the training device: one model call a step for a whole collated batch, in place of one a sample in the workers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor, decollate_batch
from monai.transforms import Randomizable
from torch import Tensor
from torch.utils.data import default_collate

from monai_diffaug.edit.request import Edit
from monai_diffaug.edit.signature import Described
from monai_diffaug.geometry.grids import required
from monai_diffaug.sampling.seeding import draw_seed
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd, agreed

__all__ = ["BatchLocalInpaint", "PrepareBatchInpaint"]


class BatchLocalInpaint(Randomizable, Described):
    """Repaint the images of a collated batch: a plain callable, for after the loader.

    Workers stay on the CPU and do what is cheap (``TextPromptd``, masks from a cache); the diffusion runs here, once a batch, with
    one model call a step for the slices of all samples that were drawn (up to the transform's ``slice_batch_size``, which a batch of
    many or of 3-D samples wants larger). Each sample draws its own coin and seed, two numbers a sample in the order of
    the samples, so the batch size does not matter.

    Args:
        transform: keys, probability and options of the edit; ``device=None`` means where the batch is.
        seed: of all coins and seeds.

    Raises:
        ValueError: ``keep_original=True``, which is for a validator of single samples.
    """

    def __init__(self, transform: DiffusionLocalInpaintd, *, seed: int) -> None:
        if transform.keep_original:
            raise ValueError("keep_original=True hands samples on to LatentValidated, which does not run on batches; leave it out")
        self.transform = transform
        self.drawn: list[tuple[bool, int]] = []
        self.set_random_state(seed=seed)

    def randomize(self, count: int) -> None:
        """Draw a coin and a seed for each of ``count`` samples, always both."""
        self.drawn = [(bool(self.R.rand() < self.transform.prob), draw_seed(self.R)) for _ in range(count)]

    def __call__(self, batch: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The batch with images, labels and records ``{key}_diffaug`` as ``list_data_collate`` would have made them.

        Args:
            batch: images (B, C, H, W[, D]), mask, label and control (B, 1, H, W[, D]), prompts as collate makes them. It is not
                written to.

        Raises:
            KeyError: no mask, no prompts, or no label or control where the transform has a key for it.
            TypeError: the images are not collated.
        """
        d = dict(batch)
        keys = list(self.transform.key_iterator(d))
        if not keys:
            return d
        self.randomize(_batch_size(d, keys[0]))
        label_key = self.transform.label_key
        if label_key is not None and not (self.transform.allow_missing_keys and label_key not in d):
            self._required(d, label_key)  # a lesion that is painted into images alone would be taught as background
        label = None if label_key is None else d.get(label_key)
        painted = None if label is None else _Rows(label)
        images = {key: _Rows(d[key]) for key in keys}
        records = {key: self._untriggered(d) for key in keys}
        edits = {key: self._edits(d, images[key], label) for key in keys}
        for i in self._chosen():
            for key, edit in agreed({key: edits[key][i] for key in keys}).items():
                records[key][i] = edit.record
                if edit.record["applied"]:
                    images[key].write(i, edit.image)
                    if painted is not None:
                        painted.write(i, edit.label)
        for key in keys:
            d[key], d[self.transform.record_key(key)] = images[key].collated, default_collate(records[key])
        if painted is not None:
            d[label_key] = painted.collated
        return d

    def _chosen(self) -> list[int]:
        return [i for i, (triggered, _) in enumerate(self.drawn) if triggered]

    def _untriggered(self, d: Mapping[Hashable, Any]) -> list[dict[str, Any]]:
        """A record for each sample as if none had been edited."""
        inpaint, records = self.transform.inpaint, []
        for prompt, (_, seed) in zip(self._prompts(d), self.drawn, strict=True):
            inpaint.seed = seed
            records.append(inpaint.untouched(prompt, "not triggered"))
        return records

    def _edits(self, d: Mapping[Hashable, Any], images: _Rows, label: Any) -> dict[int, Edit]:
        """Row of the batch -> edit of its image, of those that are triggered."""
        masks, prompts = self._required(d, self.transform.mask_key), self._prompts(d)
        control_key = self.transform.control_key
        controls = None if control_key is None else self._required(d, control_key)
        chosen = self._chosen()
        edits = self.transform.inpaint.apply_batch(
            [images.row(i) for i in chosen],
            [masks[i] for i in chosen],
            [prompts[i] for i in chosen],
            None if label is None else [label[i] for i in chosen],
            None if controls is None else [controls[i] for i in chosen],
            seeds=[self.drawn[i][1] for i in chosen],
        )
        return dict(zip(chosen, edits, strict=True))

    def _prompts(self, d: Mapping[Hashable, Any]) -> list[Any]:
        """One prompt a sample: a text, or a mix of (weight, text), which collate has turned inside out."""
        key = self.transform.prompt_key
        held = d.get(key)
        if isinstance(held, (list, tuple)) and held and not isinstance(held[0], str):
            d = {**d, key: [[(float(weight), str(text)) for weight, text in mix] for mix in decollate_batch(held)]}
        return list(self._required(d, key))

    def _required(self, d: Mapping[Hashable, Any], key: Hashable) -> Any:
        value = required(d, key, "add it in the transforms of the data set", of="batch")
        if isinstance(value, str) or not isinstance(value, (Tensor, Sequence)) or len(value) != len(self.drawn):
            raise TypeError(f"{key!r} must hold one entry for each of the {len(self.drawn)} samples of the batch")
        return value.as_tensor() if isinstance(value, MetaTensor) else value


class PrepareBatchInpaint(Described):
    """The ``prepare_batch`` of MONAI's ``SupervisedTrainer``: move the batch, repaint it, hand image and label to the network.

    The engine's batch keeps its images and is given the records, which its decollated items and handlers then see.

    Args:
        augment: the batch form of the edit.
        image_key: what the network is fed.
        label_key: what the loss compares with.
    """

    def __init__(self, augment: BatchLocalInpaint, *, image_key: str = "image", label_key: str = "label") -> None:
        self.augment = augment
        self.image_key = image_key
        self.label_key = label_key

    def __call__(
        self, batchdata: dict[Hashable, Any], device: str | torch.device | None = None, non_blocking: bool = False, **to_options: Any
    ) -> tuple[Tensor, Tensor]:
        """Image and label of the edited batch on ``device``; ``to_options`` go to ``Tensor.to``, as MONAI's engines want."""
        transform = self.augment.transform
        used = [self.image_key, self.label_key, transform.mask_key, transform.control_key, *transform.keys]
        moved = dict(batchdata)
        for key in dict.fromkeys(used):
            if isinstance(moved.get(key), Tensor):
                moved[key] = moved[key].to(device=device, non_blocking=non_blocking)
        edited = self.augment(moved)
        for key in transform.keys:
            if transform.record_key(key) in edited:
                batchdata[transform.record_key(key)] = edited[transform.record_key(key)]
        image, label = edited[self.image_key], edited[self.label_key]
        return (image.to(**to_options), label.to(**to_options)) if to_options else (image, label)


class _Rows:
    """A collated tensor, read sample by sample with each sample's affine, and copied before the first write."""

    def __init__(self, given: Tensor) -> None:
        self.given = given
        self.collated = given

    def row(self, index: int) -> Tensor:
        if not isinstance(self.given, MetaTensor):
            return self.given[index]
        affine = self.given.affine
        own: Tensor = MetaTensor(self.given.as_tensor()[index], affine=affine[index] if affine.ndim == 3 else affine)
        return own

    def write(self, index: int, value: Any) -> None:
        if self.collated is self.given:
            self.collated = self.given.clone()
        plain = self.collated.as_tensor() if isinstance(self.collated, MetaTensor) else self.collated
        plain[index] = value.as_tensor() if isinstance(value, MetaTensor) else value


def _batch_size(d: Mapping[Hashable, Any], key: Hashable) -> int:
    images = d[key]
    if not isinstance(images, Tensor) or images.ndim not in (4, 5):
        raise TypeError(
            f"{key!r} must be a collated tensor (B, C, H, W) or (B, C, H, W, D), got {type(images).__name__} "
            f"{tuple(getattr(images, 'shape', ()))}; call this after the loader"
        )
    return len(images)
