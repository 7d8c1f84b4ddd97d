"""The arms of a downstream study: each makes synthetic training images from the labelled ones.

Arms with a generator run eight steps of the sampler (``mila`` six), so that 64 images of 256 pixels take one to two minutes on one core;
the presets in ``monai_diffaug.presets`` run 12 (EMIT-Diff 20).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, CopyItemsd

from monai_diffaug.edit.options import ControlNet, InpaintOptions, Noise, Region, SemanticController, SoftEdge
from monai_diffaug.errors import DroppedSampleError
from monai_diffaug.presets.preset_keys import WholeImaged
from monai_diffaug.sampling.seeding import MAX_SEED
from monai_diffaug.studies.lesion_sources import BorrowedLesiond, OwnLesiond, OwnOrBorrowedLesiond
from monai_diffaug.studies.masked_images import MaskedImage
from monai_diffaug.transforms.edge_map import EdgeMapd
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.medsam_mask import MedSAMMaskd
from monai_diffaug.transforms.patch_merge import RandPatchMerged

__all__ = ["ARMS", "NETWORKS", "ArmFactory", "Generator", "arm_of", "description_of", "synthesise"]

STEPS = 8
INVERTED_STEPS = 6  # an inversion costs two calls a step and ten more
CONTEXT = 2.0
REPAINT_STRENGTH = 0.75
WHOLE_SLICE_GUIDANCE = 3.0
MERGED_STRENGTH, MERGED_GUIDANCE = 0.6, 2.0
DONORS = 250

NETWORKS = ("validator", "medsam", "controlnet", "semantic_controller")


@dataclass(frozen=True)
class Generator:
    """Sources of the models behind an arm; ``{n}`` in a text stands for the number of labelled images, see ``of_images``."""

    source: str  # of the inpainter, as ``model=`` takes it
    seen: str  # its training data, in words; every figure states them
    validator: str | None = "tiny"
    medsam: str | None = "tiny"
    controlnet: str | None = "tiny"
    semantic_controller: str | None = "tiny"
    more_labelled: Callable[[int], Sequence[MaskedImage]] | None = None  # for a reference: more labelled images than the study has

    def named(self, network: str) -> str:
        """Source of one of ``NETWORKS``; ValueError where the generator has none."""
        source: str | None = getattr(self, network)
        if source is None:
            words, option = network.replace("_", " "), network.replace("_", "-")
            raise ValueError(
                f"this arm needs a {words}, and the generator {self.source!r} names none; add --{option} NAME=SOURCE with the name "
                "that --generator gives it (SOURCE may be 'tiny'; say with --seen what that network has seen too)"
            )
        return source

    def of_images(self, n: int) -> Generator:
        """The generator that was trained on ``n`` labelled images: ``{n}`` is replaced in its texts."""
        texts = {name: getattr(self, name) for name in ("source", "seen", *NETWORKS)}
        return replace(self, **{name: text.replace("{n}", str(n)) for name, text in texts.items() if text is not None})


ArmFactory = Callable[[Sequence[MaskedImage], Generator], Callable[[dict[str, Any]], Mapping[Any, Any]]]


def _rare(**options: Any) -> InpaintOptions:
    """The options of all arms, and those of one."""
    return InpaintOptions(**{"region": Region(context=CONTEXT), **options})


def _inpaint(generator: Generator, *, keys: str = "image", label_key: str | None = "label", **options: Any) -> DiffusionLocalInpaintd:
    settings = {"num_inference_steps": STEPS, "options": _rare(), "device": "cpu", **options}
    return DiffusionLocalInpaintd(keys, label_key=label_key, model=generator.source, **settings)


def _copy_paste(cases: Sequence[MaskedImage], generator: Generator) -> Any:
    """The rival without a model: another training lesion's own pixels, scaled and mirrored, pasted on free tissue with a soft edge."""
    return BorrowedLesiond(cases, paste=True)


def _repaint(cases: Sequence[MaskedImage], generator: Generator) -> Any:
    """The image's own lesion again under its own label, from partial noise (strength 0.75), 8 steps."""
    return Compose([OwnLesiond(), _inpaint(generator, strength=REPAINT_STRENGTH)])


def _mila(cases: Sequence[MaskedImage], generator: Generator) -> Any:
    """MILA-TMGDiff: MedSAM outlines the own lesion from its box; repainted there by inverted noise with a local share g = 0.8, 6 steps."""
    # inverted noise keeps what g leaves of the original; without guidance, as in the preset, it costs as much as 14 guided steps
    return _outlined_and_repainted(generator, noise_scale=0.8)


def _mila_mild(cases: Sequence[MaskedImage], generator: Generator) -> Any:
    """MILA-TMGDiff as `mila`, with a local share g = 0.4: nearer to the original."""
    return _outlined_and_repainted(generator, noise_scale=0.4)


def _outlined_and_repainted(generator: Generator, noise_scale: float) -> Compose:
    outline = MedSAMMaskd("image", mask_key="mask", label_key="mask", model=generator.named("medsam"), device="cpu")
    repaint = _inpaint(
        generator,
        label_key=None,
        num_inference_steps=INVERTED_STEPS,
        guidance_scale=1.0,
        options=_rare(noise=Noise(source="inverted", scale=noise_scale)),
    )
    return Compose([OwnLesiond(), outline, repaint])


def _unvalidated(cases: Sequence[MaskedImage], generator: Generator) -> Any:
    """Lesions painted from noise and a prompt into free tissue under borrowed outlines, 8 steps; every one is kept."""
    return Compose([BorrowedLesiond(cases), _inpaint(generator)])


def _diffaug(cases: Sequence[MaskedImage], generator: Generator) -> Any:
    """DiffAug: lesions painted from noise and a prompt into free tissue, 8 steps; kept only when the latent validator finds them."""
    source = generator.named("validator")
    # without label_key, so the validator does not know the existing lesions: the committed figures were made like this
    validate = LatentValidated("image", model=source, inpaint=_inpaint(generator), on_reject="drop", device="cpu")
    return Compose([BorrowedLesiond(cases), validate])


def _emit_diff(cases: Sequence[MaskedImage], generator: Generator) -> Any:
    """EMIT-Diff: the whole slice made again from its edges and the label's outline, 8 steps (theirs: 20), guidance 3; the label stays."""
    return Compose(_from_edges(generator, "image"))


def _emit_diff_merged(cases: Sequence[MaskedImage], generator: Generator) -> Any:
    """EMIT-Diff's use of it: real and synthetic slice merged patch by patch, 60 % real; own resolution, strength 0.6, 5 steps."""
    own_resolution = _from_edges(generator, "synthetic", whole_slice=True, strength=MERGED_STRENGTH, guidance_scale=MERGED_GUIDANCE)
    twin = [CopyItemsd("image", names="synthetic"), *own_resolution]
    return Compose([*twin, RandPatchMerged("image", synthetic_keys="synthetic")])


def _emit_diff_two_scales(cases: Sequence[MaskedImage], generator: Generator) -> Any:
    """EMIT-Diff, then the lesion once more at its own scale under its label, controlled by its outline; twice 8 steps."""
    # no published procedure: a small model hardly paints a lesion of a few pixels in a whole slice, and then the label is wrong
    words, *whole_slice = _from_edges(generator, "image")
    outline = ControlNet(generator.named("controlnet"), inside=False)
    lesion = _inpaint(generator, label_key=None, mask_key="own", options=_rare(control=outline))
    return Compose([words, CopyItemsd("mask", names="own"), *whole_slice, lesion])


def _from_edges(generator: Generator, key: str, *, whole_slice: bool = False, **options: Any) -> list[Any]:
    """Transforms that replace a slice by one made from its edges and the label's outline."""
    settings = {"guidance_scale": WHOLE_SLICE_GUIDANCE, **options}
    return [
        OwnLesiond(),
        EdgeMapd("image", mask_key="label", output_key="edges"),
        WholeImaged("label"),
        _inpaint(
            generator,
            keys=key,
            label_key=None,
            options=_rare(
                control=ControlNet(generator.named("controlnet"), key="edges"),
                soft_edge=SoftEdge(width_px_at_512=0.0),
                region=Region(context=CONTEXT, whole_slice=whole_slice),
            ),
            **settings,
        ),
    ]


def _medsoft(cases: Sequence[MaskedImage], generator: Generator) -> Any:
    """MedSoft-Diffusion: the own lesion or (half the time) a borrowed one from noise, semantic controller and soft mask, 8 steps."""
    steered = _rare(control=SemanticController(generator.named("semantic_controller")))
    return Compose([OwnOrBorrowedLesiond(cases), _inpaint(generator, options=steered)])


def _real_lesions(cases: Sequence[MaskedImage], generator: Generator) -> Any:
    """Real lesions of 250 labelled images, pasted on free tissue of the labelled ones: the best painted ones could be."""
    if generator.more_labelled is None:
        raise ValueError("this arm needs further labelled images: Generator(more_labelled=...)")
    return BorrowedLesiond(generator.more_labelled(DONORS), paste=True)


# Factory of an arm (None: no synthetic images), and the networks of the generator that it uses (None: no generator at all).
# A further arm is one line, or "package.module:function" on the command line, which may use all networks.
ARMS: dict[str, tuple[ArmFactory | None, tuple[str, ...] | None]] = {
    "none": (None, None),
    "copy_paste": (_copy_paste, None),
    "repaint": (_repaint, ()),
    "mila": (_mila, ("medsam",)),
    "mila_mild": (_mila_mild, ("medsam",)),
    "inpaint": (_unvalidated, ()),
    "diffaug": (_diffaug, ("validator",)),
    "emit_diff": (_emit_diff, ("controlnet",)),
    "emit_diff_merged": (_emit_diff_merged, ("controlnet",)),
    "emit_diff_two_scales": (_emit_diff_two_scales, ("controlnet",)),
    "medsoft": (_medsoft, ("semantic_controller",)),
    "real_lesions": (_real_lesions, None),
}


def arm_of(name: str) -> tuple[ArmFactory | None, tuple[str, ...] | None]:
    """Factory and networks of an arm in ``ARMS``, or of an import path ``package.module:function``; ValueError where there is none."""
    if name in ARMS:
        return ARMS[name]
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function), NETWORKS
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no arm {name!r}: use {', '.join(ARMS)} or package.module:function ({error})") from error


def description_of(factory: ArmFactory | None) -> str:
    """Description of an arm in one line: the first of its docstring."""
    if factory is None:
        return "The labelled images alone."
    return (factory.__doc__ or "").strip().partition("\n")[0]


def synthesise(
    transform: Callable[[dict[str, Any]], Mapping[Any, Any]], cases: Sequence[MaskedImage], seed: int, position: int
) -> MaskedImage | None:
    """One synthetic image: the transform on a random labelled one; None when it was dropped or nothing was painted.

    The same ``seed`` and ``position`` give the same image, whatever was made before.
    """
    rng = np.random.RandomState(np.random.SeedSequence((seed, position)).generate_state(4))
    base = cases[rng.randint(len(cases))]
    set_state = getattr(transform, "set_random_state", None)
    if set_state is not None:
        set_state(seed=int(rng.randint(MAX_SEED, dtype="uint32")))
    words = {"finding": base.finding, "modality": base.modality, "anatomy": base.anatomy}
    try:
        result = transform({"image": base.image.clone(), "label": base.mask.clone(), **words})
    except (DroppedSampleError, RuntimeError) as error:
        if not _is_dropped(error):
            raise
        return None
    image, mask = torch.as_tensor(result["image"]).to(torch.uint8), (torch.as_tensor(result["label"]) > 0).to(torch.uint8)
    if torch.equal(image, base.image):
        return None
    return MaskedImage(image, mask, str(result["finding"]), modality=base.modality, anatomy=base.anatomy)


def _is_dropped(error: BaseException) -> bool:
    """A validator refused the sample; MONAI's Compose wraps its error in another."""
    return isinstance(error, DroppedSampleError) or (error.__cause__ is not None and _is_dropped(error.__cause__))
