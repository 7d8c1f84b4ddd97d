"""Repaint a whole collated batch on the training device: one model call per step, in place of one per sample in the workers."""

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
from monai_diffaug.sampling.seeding import draw_seed, rank_seed
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd, agreed

__all__ = ["BatchLocalInpaint", "PrepareBatchInpaint"]


class BatchLocalInpaint(Randomizable, Described):
    """Repaint the images of a collated batch; a plain callable, to be used after the loader.

    Workers stay on the CPU and do the cheap part (``TextPromptd``, masks from a cache). The diffusion runs here, once per batch, with
    one model call per step for the slices of all triggered samples (up to ``Run.slice_batch_size``, which should be larger for
    batches of many or of 3-D samples). Each sample draws its trigger and seed, two numbers per sample in the order of
    the samples, so the batch size does not matter.

    Args:
        transform: keys, probability and options of the edit; ``device=None`` is the device of the batch.
        seed: of all triggers and seeds; each process of a run of several draws others from it, see ``rank_seed``.

    Raises:
        ValueError: ``keep_original=True``, which is for a validator of single samples.

    >>> from monai_diffaug import DiffusionLocalInpaintd
    >>> masks = torch.zeros(2, 1, 64, 64)
    >>> masks[..., 24:40, 24:40] = 1
    >>> batch = {"image": torch.rand(2, 1, 64, 64), "mask": masks, "prompt": ["CT of liver, cyst"] * 2}
    >>> edit = BatchLocalInpaint(DiffusionLocalInpaintd("image", num_inference_steps=1), seed=0)
    >>> edit(batch)["image_diffaug"]["applied"].tolist()
    [True, True]
    """

    def __init__(self, transform: DiffusionLocalInpaintd, *, seed: int) -> None:
        if transform.keep_original:
            raise ValueError("keep_original=True hands samples on to LatentValidated, which does not run on batches; leave it out")
        self.transform = transform
        self.draws: list[tuple[bool, int]] = []  # (triggered, seed) per sample
        self.set_random_state(seed=rank_seed(seed))

    def randomize(self, count: int) -> None:
        """Draw a trigger and a seed for each of ``count`` samples, always both."""
        self.draws = [(bool(self.R.rand() < self.transform.prob), draw_seed(self.R)) for _ in range(count)]

    def __call__(self, batch: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The batch with images, labels and records ``{key}_diffaug`` in the form of ``list_data_collate``.

        Args:
            batch: images (B, C, H, W[, D]), mask, label and control (B, 1, H, W[, D]), prompts as collate makes them. It is not
                changed.

        Raises:
            KeyError: no mask, no prompts, or no label or control although the transform has a key for it.
            TypeError: the images are not collated.
        """
        d = dict(batch)
        keys = list(self.transform.key_iterator(d))
        if not keys:
            return d
        self.randomize(_batch_size(d, keys[0]))
        label_key = self.transform.label_key
        if label_key is not None and not (self.transform.allow_missing_keys and label_key not in d):
            self._required(d, label_key)  # a lesion painted into images alone would be learned as background
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
        return [i for i, (triggered, _) in enumerate(self.draws) if triggered]

    def _untriggered(self, d: Mapping[Hashable, Any]) -> list[dict[str, Any]]:
        """A record for each sample as if it had not been triggered."""
        inpaint, records = self.transform.inpaint, []
        for prompt, (_, seed) in zip(self._prompts(d), self.draws, strict=True):
            inpaint.seed = seed
            records.append(inpaint.untouched(prompt, "not triggered"))
        return records

    def _edits(self, d: Mapping[Hashable, Any], images: _Rows, label: Any) -> dict[int, Edit]:
        """Row of the batch -> edit of its image, for the triggered rows."""
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
            seeds=[self.draws[i][1] for i in chosen],
        )
        return dict(zip(chosen, edits, strict=True))

    def _prompts(self, d: Mapping[Hashable, Any]) -> list[Any]:
        """One prompt per sample: a text, or a mix of (weight, text), which collate has transposed."""
        key = self.transform.prompt_key
        collated = d.get(key)
        if isinstance(collated, (list, tuple)) and collated and not isinstance(collated[0], str):
            d = {**d, key: [[(float(weight), str(text)) for weight, text in mix] for mix in decollate_batch(collated)]}
        return list(self._required(d, key))

    def _required(self, d: Mapping[Hashable, Any], key: Hashable) -> Any:
        value = required(d, key, "add it in the transforms of the data set", of="batch")
        if isinstance(value, str) or not isinstance(value, (Tensor, Sequence)) or len(value) != len(self.draws):
            raise TypeError(f"{key!r} must hold one entry for each of the {len(self.draws)} samples of the batch")
        return value.as_tensor() if isinstance(value, MetaTensor) else value


class PrepareBatchInpaint(Described):
    """The ``prepare_batch`` of MONAI's ``SupervisedTrainer``: move the batch, repaint it, return image and label for the network.

    The batch of the engine keeps its images and gets the records, so that decollated items and handlers see them.

    Args:
        augment: the batch form of the edit.
        image_key: input of the network.
        label_key: target of the loss.

    >>> from monai_diffaug import DiffusionLocalInpaintd
    >>> batch = {"image": torch.rand(2, 1, 32, 32), "label": torch.zeros(2, 1, 32, 32), "mask": torch.zeros(2, 1, 32, 32)}
    >>> prepare = PrepareBatchInpaint(BatchLocalInpaint(DiffusionLocalInpaintd("image", label_key="label"), seed=0))
    >>> image, label = prepare({**batch, "prompt": ["CT of liver, cyst"] * 2}, "cpu")
    >>> image.shape, bool((image == batch["image"]).all())
    (torch.Size([2, 1, 32, 32]), True)
    """

    def __init__(self, augment: BatchLocalInpaint, *, image_key: str = "image", label_key: str = "label") -> None:
        self.augment = augment
        self.image_key = image_key
        self.label_key = label_key

    def __call__(
        self, batchdata: dict[Hashable, Any], device: str | torch.device | None = None, non_blocking: bool = False, **to_options: Any
    ) -> tuple[Tensor, Tensor]:
        """Image and label of the edited batch on ``device``; ``to_options`` go to ``Tensor.to``, as in MONAI's engines."""
        transform = self.augment.transform
        keys = [self.image_key, self.label_key, transform.mask_key, transform.control_key, *transform.keys]
        moved = dict(batchdata)
        for key in dict.fromkeys(keys):
            if isinstance(moved.get(key), Tensor):
                moved[key] = moved[key].to(device=device, non_blocking=non_blocking)
        edited = self.augment(moved)
        for key in transform.keys:
            if transform.record_key(key) in edited:
                batchdata[transform.record_key(key)] = edited[transform.record_key(key)]
        image, label = edited[self.image_key], edited[self.label_key]
        return (image.to(**to_options), label.to(**to_options)) if to_options else (image, label)


class _Rows:
    """A collated tensor, read sample by sample with the affine of each sample, and copied before the first write."""

    def __init__(self, batch: Tensor) -> None:
        if isinstance(batch, MetaTensor) and batch.affine.ndim == 3 and len(batch.affine) != len(batch):
            raise ValueError(
                f"a batch of {len(batch)} images has {len(batch.affine)} affines, so torch.cat or an index left meta data "
                "behind; join items with list_data_collate, or pass batch.as_tensor()"
            )
        self.batch = batch
        self.collated = batch

    def row(self, index: int) -> Tensor:
        if not isinstance(self.batch, MetaTensor):
            return self.batch[index]
        affine = self.batch.affine
        row: Tensor = MetaTensor(self.batch.as_tensor()[index], affine=affine[index] if affine.ndim == 3 else affine)
        return row

    def write(self, index: int, value: Any) -> None:
        if self.collated is self.batch:
            self.collated = self.batch.clone()
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
