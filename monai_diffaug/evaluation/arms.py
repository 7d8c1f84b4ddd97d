"""The arms of a downstream study: what makes synthetic training images out of the labelled ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, MapTransform, Randomizable
from numpy.typing import NDArray

from monai_diffaug.blending import composite, soft_mask
from monai_diffaug.errors import DroppedSampleError
from monai_diffaug.prompts import NORMAL
from monai_diffaug.seeding import MAX_SEED
from monai_diffaug.shapes import borrow_shape, largest_component, place
from monai_diffaug.training.captions import caption, measure
from monai_diffaug.training.tissue import normal_tissue
from monai_diffaug.transforms.latent_validate import LatentValidated
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaintd

__all__ = ["ARMS", "ArmFactory", "BorrowedLesiond", "Case", "Generator", "OwnLesiond", "arm_factory", "synthesise"]

MIN_LESION_PX = 60
SCALE_RANGE = (0.6, 1.2)
PASTE_EDGE_PX = 1.5
REPAINT_STRENGTH = 0.75
CONTEXT = 2.0


@dataclass(frozen=True)
class Case:
    """One image of a study.

    Attributes:
        image: (C, H, W) uint8.
        label: (H, W) bool, the lesion; empty when there is none.
        finding: its word; "normal tissue" when there is none.
        modality, anatomy: words of the prompt.
        group: near-duplicates share one.
        index: in the source; -1 for a synthetic image.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.bool_]
    finding: str
    modality: str
    anatomy: str
    group: int = -1
    index: int = -1

    @property
    def is_normal(self) -> bool:
        return self.finding == NORMAL


@dataclass(frozen=True)
class Generator:
    """The model behind an arm: ``source`` as ``model=`` takes it, and in words what it has ``seen`` (every figure says so)."""

    source: str
    seen: str
    validator: str | None = "tiny"


ArmFactory = Callable[[Sequence[Case], Generator], Callable[[dict[str, Any]], Mapping[Any, Any]]]


class BorrowedLesiond(Randomizable, MapTransform):
    """Choose where a lesion goes: the outline of another training lesion, scaled and mirrored, on free tissue.

    Writes "mask" (1, H, W) uint8, "prompt" and "finding"; with ``paste`` the lesion's own pixels into "image" and "label" too, which is
    the copy-paste rival. A lesion goes beside one of the same finding or into a normal image. Without a free place the mask is empty.
    """

    def __init__(self, cases: Sequence[Case], *, paste: bool = False) -> None:
        MapTransform.__init__(self, ("image", "label"))
        self.donors = [c for c in cases if c.label.sum() >= MIN_LESION_PX]
        if not self.donors:
            raise ValueError(f"no training image has a lesion of {MIN_LESION_PX} pixels to borrow")
        self.paste = paste

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        d = dict(data)
        image, label = np.asarray(d["image"]), np.asarray(d["label"])[0] > 0
        donors = [c for c in self.donors if d["finding"] in (NORMAL, c.finding)] or self.donors
        donor = donors[self.R.randint(len(donors))]
        outline, scale = largest_component(donor.label), self.R.uniform(*SCALE_RANGE)
        tissue = normal_tissue(image.max(0) / 255, label)
        pixels, shape = _cut_out(self.R, donor, outline, scale) if self.paste else (None, borrow_shape(self.R, outline, scale))
        mask = place(self.R, shape, tissue)
        d["mask"] = torch.from_numpy((np.zeros_like(label) if mask is None else mask)[None].astype(np.uint8))
        d["prompt"], d["finding"] = _prompt(self.R, donor, shape), donor.finding
        if mask is not None and pixels is not None:
            d["image"] = torch.from_numpy(_pasted(image, pixels, shape, mask))
            d["label"] = torch.from_numpy((label | mask)[None].astype(np.uint8))
        return d


class OwnLesiond(Randomizable, MapTransform):
    """Write "mask" and "prompt" of the image's own lesion; its mask is empty on normal images."""

    def __init__(self) -> None:
        MapTransform.__init__(self, ("image", "label"))

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        d = dict(data)
        image, label = np.asarray(d["image"]), np.asarray(d["label"])[0] > 0
        own = largest_component(label) if label.any() else label
        d["mask"] = torch.from_numpy(own[None].astype(np.uint8))
        words = (d["modality"], d["anatomy"], d["finding"])
        d["prompt"] = caption(self.R, *words, measure(image.mean(0), own, float(own.mean())) if own.any() else None)
        return d


def _cut_out(
    rng: np.random.RandomState, donor: Case, outline: NDArray[np.bool_], scale: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The lesion's pixels (C, h, w) and outline (h, w), scaled and mirrored alike."""
    from scipy.ndimage import zoom

    ys, xs = np.nonzero(outline)
    rows, columns = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
    turn_y, turn_x = rng.choice([-1, 1]), rng.choice([-1, 1])
    cut = donor.image[:, rows, columns][:, ::turn_y, ::turn_x].astype(np.float32)
    shape = zoom(outline[rows, columns][::turn_y, ::turn_x].astype(np.float32), scale, order=1) > 0.5
    return np.stack([zoom(channel, scale, order=1) for channel in cut]), shape


def _pasted(
    image: NDArray[np.uint8], pixels: NDArray[np.float32], shape: NDArray[np.bool_], mask: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """The lesion composited with a soft edge within its outline."""
    ys, xs = np.nonzero(mask)
    inner_ys, inner_xs = np.nonzero(shape)
    top, left = ys.min() - inner_ys.min(), xs.min() - inner_xs.min()
    canvas = image.astype(np.float32)
    canvas[:, top : top + shape.shape[0], left : left + shape.shape[1]] = pixels
    weights = soft_mask(torch.from_numpy(mask), PASTE_EDGE_PX, "inner")
    result: NDArray[np.uint8] = composite(torch.from_numpy(image), torch.from_numpy(canvas), weights[None]).numpy()
    return result


def _prompt(rng: np.random.RandomState, donor: Case, shape: NDArray[np.bool_]) -> str:
    attributes = measure(donor.image.mean(0), largest_component(donor.label), float(shape.sum()) / donor.label.size)
    return caption(rng, donor.modality, donor.anatomy, donor.finding, attributes)


def _copy_paste(cases: Sequence[Case], generator: Generator) -> Any:
    return BorrowedLesiond(cases, paste=True)


def _inpaint(generator: Generator, **options: Any) -> DiffusionLocalInpaintd:
    return DiffusionLocalInpaintd("image", label_key="label", model=generator.source, roi_context=CONTEXT, device="cpu", **options)


def _diffaug(cases: Sequence[Case], generator: Generator) -> Any:
    """DiffAug: lesions into free tissue, kept when the validator finds them (when the generator names one)."""
    if generator.validator is None:
        return Compose([BorrowedLesiond(cases), _inpaint(generator)])
    validate = LatentValidated("image", label_key="label", model=generator.validator, inpaint=_inpaint(generator), on_reject="drop")
    return Compose([BorrowedLesiond(cases), validate])


def _unvalidated(cases: Sequence[Case], generator: Generator) -> Any:
    return Compose([BorrowedLesiond(cases), _inpaint(generator)])


def _repaint(cases: Sequence[Case], generator: Generator) -> Any:
    """MILA-TMGDiff's use: the image's own lesion again under its own mask, from partial noise."""
    return Compose([OwnLesiond(), _inpaint(generator, strength=REPAINT_STRENGTH)])


# None: no synthetic images. A further arm is one line, or "package.module:function" on the command line.
ARMS: dict[str, ArmFactory | None] = {
    "none": None,
    "copy_paste": _copy_paste,
    "repaint": _repaint,
    "inpaint": _unvalidated,
    "diffaug": _diffaug,
}
WITHOUT_GENERATOR = ("none", "copy_paste")


def arm_factory(name: str) -> ArmFactory | None:
    """The arm of a name in ``ARMS``, or of an import path ``package.module:function``.

    Raises:
        ValueError: no such arm.
    """
    if name in ARMS:
        return ARMS[name]
    module, _, function = name.partition(":")
    try:
        factory: ArmFactory = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no arm {name!r}: use {', '.join(ARMS)} or package.module:function ({error})") from error
    return factory


def synthesise(transform: Callable[[dict[str, Any]], Mapping[Any, Any]], cases: Sequence[Case], seed: int, position: int) -> Case | None:
    """One synthetic image: the transform on a random labelled one; None when it was dropped or nothing was painted.

    Args:
        transform: dictionary transform of {"image": (C, H, W) uint8, "label": (1, H, W) uint8, "finding", "modality", "anatomy"}.
        cases: the labelled images.
        seed, position: same pair, same image, whatever was made before.
    """
    rng = np.random.RandomState(np.random.SeedSequence((seed, position)).generate_state(4))
    base = cases[rng.randint(len(cases))]
    set_state = getattr(transform, "set_random_state", None)
    if set_state is not None:
        set_state(seed=int(rng.randint(MAX_SEED, dtype="uint32")))
    sample = {
        "image": torch.from_numpy(base.image.copy()),
        "label": torch.from_numpy(base.label[None].astype(np.uint8)),
        "finding": base.finding,
        "modality": base.modality,
        "anatomy": base.anatomy,
    }
    try:
        result = transform(sample)
    except (DroppedSampleError, RuntimeError) as error:
        if not _dropped(error):
            raise
        return None
    image, label = np.asarray(result["image"]).astype(np.uint8), np.asarray(result["label"])[0] > 0
    if np.array_equal(image, base.image):
        return None
    return Case(image, label, str(result["finding"]), base.modality, base.anatomy)


def _dropped(error: BaseException) -> bool:
    """A validator refused the sample; MONAI's Compose wraps its error in another."""
    return isinstance(error, DroppedSampleError) or (error.__cause__ is not None and _dropped(error.__cause__))
