"""``TransplantLesion``: a real lesion of another image, put on free tissue and refined by diffusion at partial noise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.utils.type_conversion import convert_to_dst_type
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.data.donor_bank import DonorBank, load_donor_bank
from monai_diffaug.edit.contrast import lesion_contrast
from monai_diffaug.edit.denoise import Candidate, Look
from monai_diffaug.edit.kept_detail import with_detail
from monai_diffaug.edit.options import check_group
from monai_diffaug.edit.request import PendingEdit, Prompt, prompt_text
from monai_diffaug.edit.transplant_options import KEPT_NOISE, Transplant, TransplantRecord
from monai_diffaug.geometry.grids import affine_of, check_finite, check_grid, check_image, like, plain
from monai_diffaug.geometry.slices import PLANES, SlicePlane, from_slices, longest_side_mm, slice_plane, slice_spacing_mm, to_slices
from monai_diffaug.geometry.window import window_of
from monai_diffaug.masks.labels import check_label_value, class_ids, paint_label
from monai_diffaug.masks.tissue import normal_tissue, well_inside, without_holes
from monai_diffaug.models.registry import ModelSpec, shared_model
from monai_diffaug.prompts import compose_prompt, vocabulary_of
from monai_diffaug.transforms.local_inpaint import ON_ERROR, DiffusionLocalInpaint
from monai_diffaug.transforms.seeded import SeededTransform
from monai_diffaug.transforms.transplant_graft import Graft, NoGraftError, Scene, donors_for, draw_graft, pasted

__all__ = ["PendingTransplant", "TransplantLesion", "Transplanted"]

logger = logging.getLogger(__name__)


class Transplanted(NamedTuple):
    """The result of one transplant.

    Attributes:
        image: with the lesion; the input itself when nothing was transplanted.
        label: with the lesion painted in; None when there was none.
        mask: (1, H, W[, D]) uint8, the lesion; empty when nothing was transplanted.
        record: a ``TransplantRecord`` as a plain dictionary.

    >>> Transplanted(torch.zeros(1, 2, 2), None, torch.zeros(1, 2, 2), {"applied": False}).record["applied"]
    False
    """

    image: NdarrayOrTensor
    label: NdarrayOrTensor | None
    mask: NdarrayOrTensor
    record: dict[str, str | int | float | bool]


class PendingTransplant(NamedTuple):
    """A transplant that is pasted and repainted in latent space; ``TransplantLesion.finish`` decodes it.

    Attributes:
        image, label: as they were.
        graft: the lesion and its place; None when there is none.
        edit: the repainting; None with ``strength=0`` and without a graft.
        image_pasted: with the lesion, before the repainting.
        seed: of all draws.
        prompt: of the repainting.
        reason: why there is no graft.
    """

    image: NdarrayOrTensor
    label: NdarrayOrTensor | None
    graft: Graft | None
    edit: PendingEdit | None
    image_pasted: NdarrayOrTensor
    seed: int
    prompt: str
    reason: str

    @property
    def outcome(self) -> Any:
        """That of the repainting, for a ``Screen``."""
        return None if self.edit is None else self.edit.outcome


class TransplantLesion(SeededTransform):
    """Put a real lesion of another image on free tissue, and repaint it at partial noise so that it belongs there.

    The donor is mirrored, rotated, scaled in mm and bent, its intensities are brought to those of the new surround, the join is made
    continuous, and the diffusion model repaints lesion and margin at ``strength``. Voxels outside the soft mask stay bit-identical.

    Args:
        bank: the donors, a ``DonorBank`` or the file of a saved one. With a file the instance stays small when it is pickled, and a
            process reads it once.
        model: as in ``DiffusionLocalInpaint``, or a ready one, whose steps, guidance, window, plane, options, device and ``on_error``
            then count.
        strength: share of the noise schedule that is run, in [0, 1]. 0 pastes and blends only, and loads no model; 0.2 to 0.5 keeps the
            lesion.
        label_value: class id that is painted into the label; None is the donor's own.
        transplant: donors, geometry, blending and place, see ``Transplant``.
        window: intensity range that the model sees; None takes percentiles, see ``DiffusionLocalInpaint``.
        plane: anatomical plane of the slices of a 3-D image; that of the bank.
        on_error: "raise", or "passthrough": return the input untouched and give the reason in the record.
        device: where the model runs; None is the device of the image.
        prob: probability of being applied.

    Raises:
        FileNotFoundError: no such bank.
        TypeError: ``transplant`` is of another class.
        ValueError: an option out of range.

    >>> label = torch.zeros(1, 64, 64, dtype=torch.uint8)
    >>> label[:, 20:32, 20:30] = 1
    >>> image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) + 1
    >>> bank = DonorBank.of([{"image": image + label, "label": label}])
    >>> result = TransplantLesion(bank, strength=0).set_random_state(seed=1)(image, label * 0)
    >>> result.record["donor"], bool((result.label == result.mask).all()), bool((result.image != image).any())
    ('0#1', True, True)
    """

    def __init__(
        self,
        bank: DonorBank | str | Path,
        *,
        model: Any = "tiny",
        strength: float = 0.3,
        label_value: int | None = None,
        transplant: Transplant | None = None,
        window: Sequence[float] | None = None,
        plane: str = "axial",
        on_error: str = "raise",
        device: str | torch.device | None = None,
        prob: float = 1.0,
    ) -> None:
        SeededTransform.__init__(self, prob)
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be in [0, 1], got {strength}")
        if plane not in PLANES:
            raise ValueError(f"plane must be one of {', '.join(PLANES)}, got {plane!r}")
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error!r}")
        if not isinstance(bank, DonorBank) and not Path(bank).is_file():
            raise FileNotFoundError(
                f"donor bank {bank}: no such file; make one by monai-diffaug lesion-bank, or DonorBank.of(...).save(path)"
            )
        self.options = Transplant() if transplant is None else transplant
        check_group("transplant", self.options, Transplant)
        self.source: DonorBank | ModelSpec = bank if isinstance(bank, DonorBank) else ModelSpec("donor_bank", str(bank))
        self.inpaint: DiffusionLocalInpaint | None = None
        if isinstance(model, DiffusionLocalInpaint):
            plane, on_error = model.settings.plane, model.on_error
        if strength > 0 and isinstance(model, DiffusionLocalInpaint):
            self.inpaint = copy(model)
            self.inpaint.settings = replace(model.settings, strength=strength)
        elif strength > 0:
            self.inpaint = DiffusionLocalInpaint(
                model, strength=strength, window=window, plane=plane, on_error=on_error, device=device, label_value=1, options=KEPT_NOISE
            )
        self.label_value, self.plane, self.on_error = label_value, plane, on_error

    @property
    def bank(self) -> DonorBank:
        """The donors, read at first use."""
        return self.source if isinstance(self.source, DonorBank) else shared_model(self.source, "cpu", load_donor_bank)

    def __call__(
        self,
        img: NdarrayOrTensor,
        label: NdarrayOrTensor | None = None,
        region: NdarrayOrTensor | None = None,
        *,
        group: str = "",
        prompt: Prompt | None = None,
        randomize: bool = True,
    ) -> Transplanted:
        """Transplant a lesion into one image.

        Args:
            img: (C, H, W[, D]), with as many channels as the donors.
            label: (1, ...) class ids on the same grid; the lesion stays clear of all that are not 0.
            region: (1, ...) on the same grid, above 0 where the lesion may lie, e.g. an organ; None means tissue.
            group: patient or group of the image; its donors are not taken.
            prompt: text for the model; None uses the donor's words.
            randomize: draw a new trigger and seed.

        Raises:
            GridMismatchError: label or region on another grid.
            ValueError: wrong dimensions or channels, non-finite voxels, or a label type that cannot hold the class id.
        """
        if randomize:
            self.randomize()
        if not self._do_transform:
            return self.untouched(img, label, self.seed, "not triggered")
        return self.apply(img, label, region, group=group, prompt=prompt, seed=self.seed)

    def apply(
        self,
        img: NdarrayOrTensor,
        label: NdarrayOrTensor | None = None,
        region: NdarrayOrTensor | None = None,
        likelihood: NdarrayOrTensor | None = None,
        *,
        group: str = "",
        prompt: Prompt | None = None,
        seed: int,
    ) -> Transplanted:
        """Transplant with a given seed; ``likelihood`` (1, H, W[, D]) >= 0 is that of the lesion's middle."""
        return self.finish(self.denoise(img, label, region, likelihood, group=group, prompt=prompt, seed=seed))

    def untouched(self, img: NdarrayOrTensor, label: NdarrayOrTensor | None, seed: int, reason: str, prompt: str = "") -> Transplanted:
        """The image as it is, with an empty mask and the reason in the record."""
        record = TransplantRecord(seed=seed, prompt=prompt, model=self._model, reason=reason)
        return Transplanted(img, label, _empty_mask(img), record.as_dict())

    def denoise(
        self,
        img: NdarrayOrTensor,
        label: NdarrayOrTensor | None = None,
        region: NdarrayOrTensor | None = None,
        likelihood: NdarrayOrTensor | None = None,
        *,
        group: str = "",
        prompt: Prompt | None = None,
        seed: int,
        look: Look | None = None,
    ) -> PendingTransplant:
        """Everything of ``apply`` except the VAE decoder; ``look`` as in ``monai_diffaug.edit.denoise``."""
        none = PendingTransplant(img, label, None, None, img, seed, "" if prompt is None else prompt_text(prompt), "")
        try:
            scene, plane = self._scene(img, label, region, likelihood)
            rng = np.random.RandomState(seed)
            source = str(img.meta.get("filename_or_obj", "")) if isinstance(img, MetaTensor) else ""
            donors = self.bank.donors
            chosen = donors_for(
                donors, self.options.donors, is_volume=scene.is_volume, channels=scene.slices.shape[1], group=group, source=source
            )
            graft = draw_graft(rng, [donors[i] for i in chosen], scene, self.options.geometry, self.options.blend)
            if label is not None:
                check_label_value(label.dtype, self._value(graft))
            slices, _ = pasted(graft, scene, self.options.blend)
        except NoGraftError as error:
            return none._replace(reason=str(error))
        except (ValueError, RuntimeError, OSError) as error:
            if self.on_error == "raise":
                raise
            logger.warning("left a sample untouched: %s", error)
            return none._replace(reason=f"{type(error).__name__}: {error}")
        image = like(from_slices(slices, plane).contiguous(), img)
        words = _words_of(graft) if prompt is None else prompt
        pending = none._replace(graft=graft, image_pasted=image, prompt=prompt_text(words))
        if self.inpaint is None:
            return pending
        mask = _mask_like(graft.region, plane, img)
        (edit,) = self.inpaint.denoise_batch([image], [mask], [words], seeds=[seed], look=look)
        return pending._replace(edit=edit)

    def finish(self, pending: PendingTransplant) -> Transplanted:
        """Decode what ``denoise`` made, paint the label and write the record."""
        graft = pending.graft
        if graft is None:
            return self.untouched(pending.image, pending.label, pending.seed, pending.reason, pending.prompt)
        image, record = pending.image_pasted, TransplantRecord(seed=pending.seed, prompt=pending.prompt, model=self._model, tries=1)
        record.n_slices = int(graft.region.any((1, 2)).sum())
        if pending.edit is not None and self.inpaint is not None:
            (edit,) = self.inpaint.finish_batch([pending.edit])
            if not edit.record["applied"]:
                return self.untouched(pending.image, pending.label, pending.seed, str(edit.record["reason"]), pending.prompt)
            image = self._with_detail(pending.edit.outcome, edit.image)
        record.applied, record.donor, record.donor_group = True, graft.donor.origin.name, graft.donor.origin.group
        plane = self._plane_of(pending.image)
        mask = _mask_like(graft.mask, plane, pending.image)
        record.contrast, record.cnr = lesion_contrast(plain(image), plain(mask), plane)
        record.size_mm = longest_side_mm(plain(mask), affine_of(pending.image), plane)
        label = pending.label
        if label is not None:
            values = plain(label)
            label = like(paint_label(values, plain(mask).to(values.device), self._value(graft)), label)
        return Transplanted(image, label, mask, record.as_dict())

    def leave(self, pending: PendingTransplant) -> Transplanted:
        """The image as it was, with the record of a candidate that is not decoded."""
        left = self.untouched(pending.image, pending.label, pending.seed, pending.reason or "not decoded", pending.prompt)
        if pending.graft is not None:
            left.record.update(n_slices=int(pending.graft.region.any((1, 2)).sum()))
        return left

    def soft_region(self, pending: PendingTransplant) -> Tensor:
        """(1, H, W[, D]) float32: the weight of the transplant in each voxel; where it is 0 nothing can change."""
        if pending.graft is None:
            return torch.zeros(1, *pending.image.shape[1:])
        mask = _mask_like(pending.graft.region, self._plane_of(pending.image), pending.image)
        hard = plain(mask).cpu().float()
        return hard if self.inpaint is None else torch.maximum(hard, self.inpaint.soft_region(pending.image_pasted, mask))

    def _with_detail(self, outcome: Any, image: NdarrayOrTensor) -> NdarrayOrTensor:
        """The repainted image with the detail that the autoencoder loses, unless the options leave it out."""
        if self.inpaint is None or not self.options.blend.keep_detail or not isinstance(outcome, Candidate):
            return image
        model = self.inpaint.inpainter_on(outcome.stack.slices.device)
        return like(with_detail(model, outcome, plain(image), self.inpaint.settings), image)

    @property
    def _model(self) -> str:
        return "" if self.inpaint is None else self.inpaint.spec.source

    def _value(self, graft: Graft) -> int:
        return graft.donor.origin.label_value if self.label_value is None else self.label_value

    def _plane_of(self, img: NdarrayOrTensor) -> SlicePlane | None:
        return slice_plane(affine_of(img), self.plane, img.ndim - 1)

    def _scene(
        self, img: NdarrayOrTensor, label: NdarrayOrTensor | None, region: NdarrayOrTensor | None, likelihood: NdarrayOrTensor | None
    ) -> tuple[Scene, SlicePlane | None]:
        """The image as slices on the CPU, and where a lesion may lie."""
        check_image(img)
        for name, each in (("label", label), ("region", region), ("likelihood", likelihood)):
            if each is not None:
                check_grid(name, each, img)
        volume = plain(img).cpu()
        check_finite(volume)
        plane = self._plane_of(img)
        slices = to_slices(volume, plane)
        ids = torch.zeros(1, *volume.shape[1:], dtype=torch.int64) if label is None else class_ids(plain(label).cpu())
        classes = to_slices(ids, plane)[:, 0].numpy()
        window = window_of(volume)
        free = np.isin(classes, (0, *self.options.background))
        if region is not None:
            allowed = free & np.stack([without_holes(each) for each in to_slices(plain(region).cpu() > 0, plane)[:, 0].numpy()])
        else:
            brightness = (to_slices(window.to_model(volume).amax(0, keepdim=True), plane)[:, 0].numpy() + 1) / 2
            allowed = free & np.stack([well_inside(normal_tissue(each, ~clear)) for each, clear in zip(brightness, free, strict=True)])
        weights = None if likelihood is None else _likelihood(to_slices(plain(likelihood).cpu().float(), plane)[:, 0].numpy())
        spacing_mm = slice_spacing_mm(affine_of(img), plane)
        ends = (window.low, window.high)
        return Scene(slices, allowed, free, weights, spacing_mm, ends, plane is not None, region is not None), plane


def _likelihood(values: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError(f"a likelihood of places must be finite and >= 0, got {values.min()} to {values.max()}")
    return values


def _mask_like(mask: NDArray[np.bool_], plane: SlicePlane | None, img: NdarrayOrTensor) -> NdarrayOrTensor:
    """A mask (S, H, W) as (1, H, W[, D]) uint8 in the type of the image."""
    stacked = from_slices(torch.from_numpy(mask)[:, None], plane).contiguous().to(torch.uint8)
    converted: NdarrayOrTensor = convert_to_dst_type(stacked, dst=img, dtype=torch.uint8)[0]
    return converted


def _empty_mask(img: NdarrayOrTensor) -> NdarrayOrTensor:
    empty: NdarrayOrTensor = convert_to_dst_type(torch.zeros(1, *img.shape[1:], dtype=torch.uint8), dst=img, dtype=torch.uint8)[0]
    return empty


def _words_of(graft: Graft) -> str:
    """The prompt of a donor; empty where it has no words."""
    origin = graft.donor.origin
    try:
        modality = vocabulary_of(origin.modality).modality if origin.modality else ""
    except ValueError:  # a modality without a vocabulary
        modality = origin.modality
    return compose_prompt(modality, origin.anatomy, origin.finding) if modality else origin.finding
