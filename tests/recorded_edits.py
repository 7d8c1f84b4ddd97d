"""Named settings of all transforms and the SHA-256 of what they make of synthetic images: proof that a re-layout changes nothing.

``python tests/recorded_edits.py --write FILE.json`` runs the settings and keeps the hashes, ``--check FILE.json`` names those that differ.

The settings are data, the flat names of the options; what constructs the transforms from them are the ``BUILDERS`` below. Hashes of float
results hold for one kind of processor and one version of torch. Means, deviations and counts are kept with them, for ``apart``, which
compares what any machine makes within a tolerance.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import Dataset, MetaTensor, list_data_collate
from monai.transforms import Compose, Randomizable

import monai_diffaug as da
from monai_diffaug import presets

PROMPT = "ultrasound of breast, malignant mass, irregular, hypoechoic"
AFFINES = {  # voxel to R, A, S in mm, named after the directions of the three axes
    "RAS": np.diag([0.9, 0.9, 3.0, 1.0]),
    "PSR": np.array([[0, 0, 4.0, 5], [-0.8, 0, 0, 9], [0, 0.8, 0, -7], [0, 0, 0, 1]]),
    "IRA": np.array([[0, 0.7, 0, 0], [0, 0, 2.5, 3], [-0.7, 0, 0, 2], [0, 0, 0, 1]]),
    "oblique": np.array([[0.66, -0.24, 0.1, -20], [0.23, 0.64, -0.5, 11], [0.03, 0.12, 2.95, 4], [0, 0, 0, 1.0]]),
    "oblong pixels": np.diag([0.5, 1.5, 1.0, 1.0]),
}


# ---------------------------------------------------------------------------------------------------------------- samples


def discs(size: Sequence[int], centre: tuple[float, float], radius: float) -> np.ndarray:
    """(H, W[, D]) bool: a disc, in a volume a ball whose centre moves along its slices; in pixels of a slice 64 wide."""
    rows, columns = np.indices(size[:2]) * (64 / min(size[0], size[1]))
    if len(size) == 2:
        return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
    ends = [(k - (size[2] - 1) / 2) / (size[2] / 2) for k in range(size[2])]
    parts = [discs(size[:2], (centre[0], centre[1] + 2 * end), radius * math.sqrt(1 - end**2)) for end in ends]
    return np.stack([part & (abs(end) < 0.7) for part, end in zip(parts, ends, strict=True)], -1)


def sample(
    size: Sequence[int] = (64, 64),
    *,
    channels: int = 1,
    dtype: str = "float32",
    holder: str = "tensor",
    affine: str | None = None,
    unit: tuple[float, float] = (1.0, 0.0),
    lesion: tuple[float, float, float] = (42.0, 22.0, 7.0),
    target: tuple[float, float, float] | None = (24.0, 40.0, 8.0),
    far: tuple[float, float, float] | None = None,
    label_value: int = 1,
    other: tuple[float, float, float] | None = None,
    broken: bool = False,
    seed: int = 0,
    rename: Mapping[str, str] = {},
    lacks: Sequence[str] = (),
    **items: Any,
) -> dict[str, Any]:
    """A smooth background, a bright disc, speckle; its label; a mask to repaint beside it; and a twin with other speckle.

    Args:
        size, channels, dtype: of the image.
        holder: "numpy", "tensor" or "meta", what holds image, label and mask.
        affine: name in ``AFFINES``, for "meta".
        unit: (factor, offset) that takes grey values of 0 to 255 to the image's unit.
        lesion, target, far: (row, column, radius) of the bright disc, and of the two parts of the mask.
        label_value: class id of the bright disc.
        other: a second bright disc, of class 9.
        broken: one voxel of the image is not finite.
        seed: of the speckle.
        rename, lacks, items: other names of items, items to leave out, further ones.
    """
    rng = np.random.RandomState(seed)
    rows, columns = np.indices(size)[:2] * (64 / min(size[0], size[1]))
    disc, second = (np.zeros(size, bool) if part is None else discs(size, part[:2], part[2]) for part in (lesion, other))
    smooth = 100 + 25 * np.sin(columns / 17) + 18 * np.cos(rows / 13) + 70 * (disc | second)
    mask = np.logical_or.reduce([discs(size, part[:2], part[2]) for part in (target, far) if part is not None] or [disc & False])
    label = np.where(disc, label_value, 9 * second)
    gains = np.array([1.0, 0.8, 0.6][:channels]).reshape(-1, *[1] * len(size))

    def picture() -> np.ndarray:
        grey = np.clip(gains * smooth * (1 + 0.08 * rng.standard_normal((channels, *size))), 0, 255)
        scaled = grey * unit[0] + unit[1]
        return (scaled.round() if dtype != "float32" else scaled).astype(dtype)

    arrays = {"image": picture(), "twin": picture(), "label": label[None].astype(np.uint8), "mask": mask[None].astype(np.uint8)}
    if broken:
        arrays["image"][0, 3, 5] = np.nan
    made = {**{name: held(array, holder, affine) for name, array in arrays.items()}, "prompt": PROMPT, "id": f"patient {seed}", **items}
    return {rename.get(name, name): value for name, value in made.items() if name not in lacks}


def held(array: np.ndarray, holder: str, affine: str | None) -> Any:
    if holder == "numpy":
        return array
    tensor = torch.from_numpy(array)
    return tensor if holder == "tensor" else MetaTensor(tensor, affine=torch.from_numpy(AFFINES[affine or "RAS"].copy()))


# --------------------------------------------------------------------------------------------------------------- builders


class Step(NamedTuple):
    """A transform as data.

    Attributes:
        build: name in ``BUILDERS``.
        options: by their flat names; values may be steps, which are built first.
        items: names of the items of the sample that an array form is called with (" ": none); its result is the item "result".
    """

    build: str
    options: Mapping[str, Any] = {}
    items: str = ""


def made(value: Any) -> Any:
    """An option's value, with steps in it built."""
    if isinstance(value, list):
        return [made(each) for each in value]
    if not isinstance(value, Step):
        return value
    built = BUILDERS[value.build](**{name: made(option) for name, option in value.options.items()})
    return ArrayForm(built, value.items) if value.items else built


class ArrayForm(Randomizable):
    """Calls an array form with items of the sample and keeps its result."""

    def __init__(self, transform: Callable[..., Any], items: str) -> None:
        self.transform, self.items = transform, items.split()

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> ArrayForm:
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {**data, "result": self.transform(*(data[name] for name in self.items))}


class OfSetting(Randomizable):
    """The steps of a setting, built at each call: ``transform_hashing`` sees its name alone, whichever module a transform is in."""

    __module__ = "recorded_edits"

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name, self.seed = name, seed

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> OfSetting:
        self.seed = seed or 0
        return self

    def __call__(self, data: Mapping[str, Any]) -> Any:
        return Compose(made(SETTINGS[self.name].steps)).set_random_state(seed=self.seed)(data)


OPTION_GROUPS: Mapping[Any, Mapping[str, str]] = {  # option group -> its options by their flat names
    da.Noise: {"noise_rho": "rho", "noise_source": "source", "noise_scale": "scale"},
    da.SoftEdge: {"soft_width": "width_px_at_512", "soft_width_mm": "width_mm", "soft_mode": "mode"},
    da.Region: {"roi_context": "context", "whole_slice": "whole_slice"},
    da.Run: {"dtype": "dtype", "compile": "compile", "slice_batch_size": "slice_batch_size"},
    da.ControlNet: {"controlnet": "source", "control_scale": "scale", "control_key": "key", "control_inside": "inside"},
    da.SemanticController: {"semantic_controller": "source"},
    da.Validator: {"min_side": "min_side_px", **{each.name: each.name for each in fields(da.Validator)}},
    da.Screen: {"screen": "source", "min_screen_dice": "min_dice", "screen_after": "after"},
    da.Dynamic: {"dynamic_quantile": "quantile", "dynamic_length": "length"},
}


def group(kind: Any, flat: dict[str, Any]) -> Any:
    """An option group of the flat options that belong to it, which are taken out."""
    return kind(**{option: flat.pop(name) for name, option in OPTION_GROUPS[kind].items() if name in flat})


def inpaint_options(flat: dict[str, Any]) -> dict[str, Any]:
    """The options of an inpainting transform, the rare ones in their groups."""
    flat = {**flat, "whole_slice": not flat.get("roi", True)}
    flat.pop("roi", None)
    control = None
    if flat.get("controlnet") is not None:
        control = group(da.ControlNet, flat)
    elif flat.get("semantic_controller") is not None:
        control = group(da.SemanticController, flat)
    flat = {name: value for name, value in flat.items() if name not in ("controlnet", "semantic_controller")}
    groups = {
        name: group(kind, flat) for name, kind in (("noise", da.Noise), ("soft_edge", da.SoftEdge), ("region", da.Region), ("run", da.Run))
    }
    other = {name: flat.pop(name) for name in ("guidance_interval", "record_postfix") if name in flat}
    return {**flat, "options": da.InpaintOptions(control=control, **groups, **other)}


def inpaint(**flat: Any) -> Any:
    return da.DiffusionLocalInpaintd(**inpaint_options(flat))


def inpaint_array(**flat: Any) -> Any:
    return da.DiffusionLocalInpaint(**inpaint_options(flat))


def inpaint_batch(**flat: Any) -> Any:
    """Two samples of different sizes through ``apply_batch``, in two parts too, and the weights of the first one's edit."""
    transform = inpaint_array(**flat)

    def run(*arrays: Any) -> dict[str, Any]:
        columns = [list(column) for column in zip(arrays, [array[..., 4:60, :] for array in arrays], strict=True)]
        given = {"images": columns[0], "masks": columns[1], "prompts": [PROMPT, "ultrasound of liver, simple cyst"], "labels": columns[2]}
        pending = transform.denoise_batch(**given, seeds=[3, 4])
        return {
            "edits": transform.apply_batch(**given, seeds=[3, 4]),
            "in two parts": transform.finish_batch(pending),
            "left": transform.leave(pending[0]),
            "weights": transform.soft_region(columns[0][0], columns[1][0]),
        }

    return run


def validated(**flat: Any) -> Any:
    screen = group(da.Screen, flat) if flat.get("screen") is not None else None
    dynamic = group(da.Dynamic, flat) if flat.pop("dynamic", False) else None
    model = flat.pop("validator", None)
    flat = {**flat, **({} if model is None else {"model": model})}
    return da.LatentValidated(validator=group(da.Validator, flat), screen=screen, dynamic=dynamic, **flat)


def validate_array(**flat: Any) -> Any:
    return da.LatentValidate(options=group(da.Validator, flat), **flat)


def verdicts(seed: int, least: float, **flat: Any) -> Any:
    """The options of ``LatentValidate``'s call: (image, mask, original, known)."""
    judge = validate_array(**flat)

    def run(image: Any, mask: Any, original: Any, known: Any) -> list[Any]:
        return [judge(image, mask), judge(image, mask, original, known=known, seed=seed, min_dice=least)]

    return run


def outline(**flat: Any) -> Any:
    return da.MedSAMMaskd(**flat)


def outline_array(**flat: Any) -> Any:
    return da.MedSAMMask(**flat)


def place(**flat: Any) -> Any:
    return da.PlaceMaskd(**flat)


PLACING = ("bank", "shape", "region_key", "size_range", "scale_range", "depth_mm")


def preset(name: str, **flat: Any) -> Any:
    if name == "diffaug":
        image_key, label_key, plane = flat.get("image_key", "image"), flat.get("label_key", "label"), flat.get("plane", "axial")
        placing = {option: flat.pop(option) for option in PLACING if option in flat}
        flat["place"] = da.PlaceMaskd(image_key, label_key=label_key, plane=plane, **placing)
        where = {option: flat[option] for option in ("window", "plane", "device") if option in flat}
        options = da.Validator(refine_label=flat.pop("refine_label", False))
        flat["validator"] = da.LatentValidate(flat.pop("validator", "tiny"), flat.pop("min_dice", 0.7), options=options, **where)
        flat["dynamic"] = da.Dynamic() if flat.pop("dynamic", False) else None
    if name == "emit_diff":
        flat["region"] = da.Region(whole_slice=not flat.pop("roi", True))
        flat["control"] = group(da.ControlNet, flat)
    if name == "medsoft_diffusion":
        flat["soft_edge"] = group(da.SoftEdge, flat)
        flat["control"] = group(da.SemanticController, flat)
    return getattr(presets, name)(**flat)


def compose(steps: list[Any]) -> Any:
    return Compose(steps)


def cached(epoch: int = 0, **flat: Any) -> Any:
    transform = da.CachedRandomd(**flat)
    if epoch:
        transform.set_epoch(epoch)
    return transform


def draw_variant(setting: str, folder: bool = False, **flat: Any) -> Any:
    return da.DrawVariantd(da.VariantBank(OfSetting(setting), folder=scratch() if folder else None, **flat))


def lesion_bank(count: int = 5, saved: bool = False, data: Mapping[str, Any] = {}, **flat: Any) -> Any:
    """A bank of ``count`` samples, two of each patient; ``saved``: its file."""
    lesions = [(24.0 + seed // 2, 38.0, 7.0 + seed // 2) for seed in range(count)]
    samples = [sample(**{"seed": seed, "patient": seed // 2, "lesion": lesion, **data}) for seed, lesion in enumerate(lesions)]
    bank = da.LesionBank.of(samples, **flat)
    return bank.save(scratch() / "lesions.npz") if saved else bank


def listed_bank(count: int = 4, **flat: Any) -> Any:
    """The same from a datalist and its files."""
    entries, folder = [], scratch()
    for seed in range(count):
        paths = {name: folder / f"{name}{seed}.npy" for name in ("image", "label")}
        for name, path in paths.items():
            drawn = sample(
                (64, 64, 6), seed=seed, holder="numpy", label_value=2, lesion=(42.0, 22.0, 6.0 + 4 * (seed // 2)), other=(12.0, 50.0, 6.0)
            )
            np.save(path, drawn[name][0])
        entries.append({**{name: path.name for name, path in paths.items()}, "patient": seed // 2})
    listed = folder / "lesions.json"
    listed.write_text(json.dumps({"validation": entries}))
    return da.LesionBank.from_datalist(listed, **flat)


def of_bank(bank: Any) -> Any:
    def run(image: Any, mask: Any) -> dict[str, Any]:
        return {"patterns": bank.patterns, "owners": bank.owners, "yardstick": bank.yardstick, "found": bank.nearest(image, mask)}

    return run


def outline_files() -> list[Path]:
    """Three masks as pictures, one of them in colour."""
    from PIL import Image

    paths, folder = [], scratch()
    for k, radius in enumerate((5.0, 7.0, 9.0)):
        grey = discs((40, 48), (24, 30), radius).astype(np.uint8) * 255
        paths.append(folder / f"outline{k}.png")
        Image.fromarray(grey if k else np.stack([grey, grey // 2, grey * 0], -1)).save(paths[-1])
    return paths


def prepare_batch(image_key: str = "image", label_key: str = "label", **flat: Any) -> Any:
    prepare = da.PrepareBatchInpaint(da.BatchLocalInpaint(**flat), image_key=image_key, label_key=label_key)

    def run(batch: dict[str, Any]) -> dict[str, Any]:
        image, label = prepare(batch, device="cpu", dtype=torch.float64)
        return {**batch, "image": image, "label": label}

    return run


def thread_loader(transform: Any, count: int, **flat: Any) -> Any:
    """The batches of an epoch, whatever the sample."""

    def run(data: Mapping[str, Any]) -> dict[str, Any]:
        dataset = Dataset([sample(seed=seed) for seed in range(count)], transform)
        return {"batches": list(da.RaisingThreadDataLoader(dataset, **flat))}

    return run


def placeholders(keys: Sequence[str]) -> Any:
    return lambda data: da.with_placeholders([data], keys)[0]


def loss(classes: int = 1, **flat: Any) -> Any:
    """``PatchMergeLoss`` of logits drawn here, with its gradient."""
    merge_loss = da.PatchMergeLoss(**flat)

    def run(label: Any) -> dict[str, Any]:
        rng = np.random.RandomState(5)
        real, synthetic = (torch.from_numpy(rng.standard_normal((2, classes, *label.shape[1:]))).float() for _ in range(2))
        real.requires_grad_(True)
        value = merge_loss(real, synthetic, label[None].float().expand(2, *label.shape), torch.Generator().manual_seed(6))
        value.backward()
        return {"loss": value.detach(), "gradient": real.grad}

    return run


@cache
def pipeline() -> Any:
    """A live pipeline: the embedded parts, but a plain four-channel UNet of random weights and a scheduler that draws noise."""
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel

    folder = next(Path(da.__file__).parent.rglob("model_index.json")).parent
    whole = StableDiffusionInpaintPipeline.from_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config({**whole.unet.config, "in_channels": 4})
    parts = {**whole.components, "unet": unet, "scheduler": EulerAncestralDiscreteScheduler.from_config(whole.scheduler.config)}
    return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


class Darkness(torch.nn.Module):
    """An edge detector as a network."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 1 - images.mean(1, keepdim=True)


@dataclass(frozen=True)
class Words:
    """A vocabulary."""

    modality: str = "thermography"
    anatomies: tuple[str, ...] = ("hand", "foot")
    findings: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"hand": ("hot spot", "rash"), "foot": ("ulcer",)})
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"size": ("small", "large"), "shape": ("round", "oval")})


def box_of_slice(index: int, picture: torch.Tensor) -> tuple[float, float, float, float] | None:
    return None if index == 0 else (14.0, 34.0 - index, 31.0, 52.0)


def corner(rng: np.random.RandomState, side: int) -> np.ndarray:
    shape = np.ones((side, side // 2 + 1), bool)
    shape[: side // 2, : rng.randint(1, side // 3 + 1)] = False
    return shape


def central(images: torch.Tensor) -> torch.Tensor:
    """A segmenter that finds the middle of a crop and what is bright."""
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in images.shape[-2:]), indexing="ij")
    return ((rows**2 + columns**2 < 0.3) | (images.mean(1, keepdim=True) > 0.6)).float()


def half_found(latents: torch.Tensor) -> torch.Tensor:
    found = torch.full_like(latents[:, :1], -9.0)
    found[..., 12:18, 10:22] = 9.0
    return found


def darkness(images: torch.Tensor) -> torch.Tensor:
    return 1 - images.mean(1, keepdim=True)


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="recorded_edits")


def scratch() -> Path:
    """A new folder, gone at the end: loaded files are kept by their names."""
    return Path(tempfile.mkdtemp(dir=_scratch().name))


BUILDERS: Mapping[str, Callable[..., Any]] = {
    "batch": da.BatchLocalInpaint,
    "cached": cached,
    "choose": da.RandSyntheticd,
    "choose_array": da.RandSynthetic,
    "compose": compose,
    "darkness": Darkness,
    "draw_variant": draw_variant,
    "edges": da.EdgeMapd,
    "edges_array": da.EdgeMap,
    "inpaint": inpaint,
    "inpaint_array": inpaint_array,
    "inpaint_batch": inpaint_batch,
    "lesion_bank": lesion_bank,
    "listed_bank": listed_bank,
    "loss": loss,
    "merge": da.RandPatchMerged,
    "merge_array": da.RandPatchMerge,
    "novelty": da.LesionNovelty,
    "of_bank": of_bank,
    "outline": outline,
    "outline_array": outline_array,
    "outline_files": outline_files,
    "pack": da.PackKeysd,
    "pipeline": pipeline,
    "place": place,
    "place_array": da.PlaceMask,
    "placeholders": placeholders,
    "prepare_batch": prepare_batch,
    "preset": preset,
    "soften": da.SoftMaskd,
    "soften_array": da.SoftMask,
    "text": da.TextPromptd,
    "text_array": da.TextPrompt,
    "thread_loader": thread_loader,
    "unpack": da.UnpackKeysd,
    "validate_array": validate_array,
    "validated": validated,
    "verdicts": verdicts,
}


# --------------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Setting:
    """One entry of the record.

    Attributes:
        steps: of a ``Compose``.
        data: arguments of ``sample``.
        calls: how often the ``Compose`` is called with the sample, going on with its random numbers.
        seed: of the ``Compose``; None calls the only step by itself, as a ``Compose`` gives its steps new seeds.
        batch: samples that are collated; 0 means one that is not.
        fails: the error that ends it is its result.
    """

    steps: list[Step]
    data: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 1
    seed: int | None = 1
    batch: int = 0
    fails: bool = False


def step(build: str, items: str = "", **flat: Any) -> Step:
    return Step(build, flat, items)


def edit(**flat: Any) -> Step:
    return Step("inpaint", {"keys": "image", "num_inference_steps": 2, **flat})


def judged(**flat: Any) -> Step:
    return Step("validated", {"keys": "image", **flat})


def judged_edit(*, of_edit: Mapping[str, Any] = {}, **flat: Any) -> Step:
    return judged(label_key="label", inpaint=edit(label_key="label", **of_edit), **flat)


VOLUME = {"size": (64, 64, 6), "holder": "meta"}
HU = {"dtype": "int16", "unit": (4.0, -500.0)}
COLOUR = {"dtype": "uint8", "channels": 3}

# fmt: off
SETTINGS: dict[str, Setting] = {
    # DiffusionLocalInpaintd
    "inpaint defaults": Setting([step("inpaint", keys="image")]),
    "inpaint uint8 array, hard edge, no guidance": Setting(
        [edit(soft_width=0.0, guidance_scale=1.0, label_key="label")],
        {"dtype": "uint8", "holder": "numpy"},
    ),
    "inpaint colour, edge about the outline": Setting([edit(soft_mode="centre", soft_width=24.0, label_key="label")], COLOUR),
    "inpaint int16, window, inner edge": Setting([edit(soft_mode="inner", soft_width=40.0, window=(-160, 240))], HU),
    "inpaint edge in mm": Setting([edit(soft_width_mm=1.6)], {"holder": "meta", "affine": "oblong pixels", **HU}),
    "inpaint strength, guidance interval, negative prompt": Setting(
        [edit(num_inference_steps=4, strength=0.75, guidance_scale=6.0, guidance_interval=(0.3, 0.9), negative_prompt="normal tissue")],
    ),
    "inpaint local noise": Setting([edit(noise_scale=0.4, guidance_scale=1.0)]),
    "inpaint inverted noise": Setting([edit(noise_source="inverted", noise_scale=0.5, guidance_scale=1.0)]),
    "inpaint inverted noise, strength, whole slices": Setting(
        [edit(noise_source="inverted", strength=0.5, num_inference_steps=4, roi=False)],
        {"size": (44, 60)},
    ),
    "inpaint volume, axial, correlated noise, slices in twos": Setting(
        [edit(noise_rho=0.7, slice_batch_size=2, label_key="label")],
        {**VOLUME, "affine": "RAS"},
    ),
    "inpaint volume, axial, oblique affine, edge in mm": Setting(
        [edit(soft_width_mm=2.0, roi_context=1.3, label_key="label")],
        {**VOLUME, "affine": "oblique", **HU, "target": (24.0, 40.0, 12.0)},
    ),
    "inpaint volume, sagittal, stored P, S, R": Setting([edit(plane="sagittal", noise_rho=0.4)], {**VOLUME, "affine": "PSR"}),
    "inpaint volume, coronal, stored I, R, A": Setting([edit(plane="coronal", label_key="label")], {**VOLUME, "affine": "IRA", **HU}),
    "inpaint volume, axial, stored P, S, R, thin slices": Setting(
        [edit(num_inference_steps=1, guidance_scale=1.0, slice_batch_size=5)],
        {"size": (20, 24, 6), "holder": "meta", "affine": "PSR"},
    ),
    "inpaint two lesions far apart": Setting(
        [edit(roi_context=1.2)],
        {"size": (176, 176), "target": (13.0, 14.0, 6.0), "far": (50.0, 49.0, 5.0)},
    ),
    "inpaint ControlNet, edges drawn": Setting([edit(controlnet="tiny", control_scale=0.7)]),
    "inpaint ControlNet, outline alone, inverted": Setting(
        [edit(controlnet="tiny", control_inside=False, noise_source="inverted", noise_scale=0.3)],
    ),
    "inpaint ControlNet, given edges": Setting(
        [step("edges", keys="image", method="scharr", output_key="lines"), edit(controlnet="tiny", control_key="lines", roi=False)],
        COLOUR,
    ),
    "inpaint semantic controller": Setting([edit(semantic_controller="tiny", num_inference_steps=3)]),
    "inpaint bfloat16": Setting([edit(dtype="bfloat16", device="cpu", model="tiny")]),
    "inpaint live pipeline, four channels, noisy steps": Setting([edit(model=step("pipeline"), num_inference_steps=4, strength=0.6)]),
    "inpaint prompt mix": Setting([edit()], {"prompt": [(0.7, "MRI of brain, glioma, large"), (0.3, "MRI of brain, infarct, small")]}),
    "inpaint label value and other keys": Setting(
        [edit(label_value=2, mask_key="region", prompt_key="text", label_key="seg", record_postfix="lesion")],
        {"rename": {"mask": "region", "prompt": "text", "label": "seg"}, "lesion": (30.0, 34.0, 7.0)},
    ),
    "inpaint erases the label": Setting([edit(label_value=0, label_key="label")], {"lesion": (30.0, 34.0, 7.0), "holder": "numpy"}),
    "inpaint not triggered, originals kept": Setting([edit(prob=0.0, keep_original=True, label_key="label")]),
    "inpaint coins": Setting([edit(prob=0.5, num_inference_steps=1)], calls=4),
    "inpaint leaves what it cannot edit": Setting([edit(on_error="passthrough", label_key="label")], {"broken": True}),
    "inpaint empty mask": Setting([edit(keep_original=True)], {"target": None, **COLOUR}),
    "inpaint two images, one and the label missing": Setting(
        [edit(keys=["image", "other", "twin"], allow_missing_keys=True, label_key="label")],
        {"lacks": ("label",)},
    ),
    "inpaint array form": Setting([step("inpaint_array", "image mask prompt label", num_inference_steps=2, label_value=3)]),
    "inpaint array form, options": Setting(
        [
            step("edges", keys="image"),
            step("inpaint_array", "image mask prompt label edges", num_inference_steps=4, strength=0.75, guidance_scale=5.0,
                guidance_interval=(0.0, 0.5), negative_prompt="noise", noise_rho=0.2, noise_source="inverted", noise_scale=0.6,
                window=(20, 220), plane="sagittal", soft_width_mm=0.5, soft_mode="centre", slice_batch_size=3, roi_context=1.2,
                controlnet="tiny", control_scale=0.5, device="cpu", dtype="bfloat16", prob=0.7),
        ],
        {**VOLUME, "affine": "PSR", "target": (24.0, 40.0, 11.0)}, calls=2,
    ),
    "inpaint array form, semantic controller, whole slices": Setting(
        [step("inpaint_array", "image mask prompt", num_inference_steps=2, semantic_controller="tiny", roi=False, soft_width=20.0)],
    ),
    "inpaint array form, ControlNet, outline alone": Setting(
        [step("inpaint_array", "image mask prompt", num_inference_steps=2, controlnet="tiny", control_inside=False)],
    ),
    "inpaint array form leaves what it cannot edit": Setting(
        [step("inpaint_array", "image mask prompt label", on_error="passthrough", model="tiny")],
        {"broken": True},
    ),
    "inpaint array form, batch of two sizes": Setting(
        [step("inpaint_batch", "image mask label", num_inference_steps=2, roi=False)],
        {"dtype": "uint8"},
    ),
    "two edits in one pipeline": Setting(
        [
            edit(num_inference_steps=1, label_key="label"),
            step("place", keys="image", label_key="label", mask_key="second", size_range=(0.2, 0.3)),
            step("text", keys="words", modality="MRI"),
            edit(mask_key="second", prompt_key="words", label_key="label", label_value=2, record_postfix="second"),
        ],
    ),
    # batches
    "batch": Setting(
        [step("batch", transform=edit(keys=["image", "twin"], label_key="label", prob=0.6), seed=11)],
        {"holder": "meta"}, calls=2, seed=None, batch=3,
    ),
    "batch of prompt mixes with control": Setting(
        [step("batch", transform=edit(controlnet="tiny", control_key="twin", window=(0, 200)), seed=2)],
        {"prompt": [(0.5, "CT of chest, lung nodule"), (0.5, "CT of chest, consolidation")], "unit": (1 / 255, 0.0)}, seed=None, batch=2,
    ),
    "prepared batch": Setting(
        [step("prepare_batch", transform=edit(keys="twin", label_key="seg"), seed=5, image_key="twin", label_key="seg")],
        {"rename": {"label": "seg"}}, seed=None, batch=2,
    ),
    # LatentValidated
    "validated defaults": Setting([edit(keep_original=True), judged()]),
    "validated behind an edit, original put back": Setting(
        [edit(label_key="label", keep_original=True), judged(label_key="label", min_dice=0.999)],
    ),
    "validated with its edit, postfix": Setting(
        [judged_edit(of_edit={"record_postfix": "own", "label_value": 2}, label_value=2, model="tiny", device="cpu", dtype="float32")],
    ),
    "validated flags, other keys": Setting(
        [
            edit(keys=["image", "twin"], mask_key="region", keep_original=True, record_postfix="other"),
            judged(keys=["image", "twin", "third"], mask_key="region", record_postfix="other", on_reject="flag", min_change=1.0,
                min_coverage=1.0, window=(60.0, 140.0), allow_missing_keys=True),
        ],
        {"rename": {"mask": "region"}},
    ),
    "validated drops": Setting([judged_edit(on_reject="drop", min_dice=0.999)], fails=True),
    "validated coins": Setting([judged_edit(prob=0.5)], calls=4),
    "validated retries, best one flagged": Setting(
        [judged_edit(on_reject="retry", max_tries=2, on_exhausted="flag", min_dice=0.999, of_edit={"num_inference_steps": 1})],
    ),
    "validated retries, original put back": Setting([judged_edit(on_reject="retry", min_coverage=1.0, min_dice=1.0, max_tries=2)]),
    "validated retries, dropped": Setting([judged_edit(on_reject="retry", max_tries=2, on_exhausted="drop", min_change=0.9)], fails=True),
    "validated retry accepted": Setting([judged_edit(on_reject="retry", min_dice=0.9, of_edit={"num_inference_steps": 1})], calls=3),
    "validated screen": Setting([judged_edit(screen="tiny", on_reject="retry", of_edit={"num_inference_steps": 4})], calls=2),
    "validated screen refuses, flagged": Setting(
        [judged_edit(screen="tiny", min_screen_dice=1.0, screen_after=0.75, on_reject="retry", max_tries=2, on_exhausted="flag",
            of_edit={"num_inference_steps": 4})],
    ),
    "validated callable screen refuses the finished latents": Setting(
        [judged_edit(screen=half_found, min_screen_dice=0.9, screen_after=1.0)],
    ),
    "validated novelty, copy refused": Setting(
        [judged_edit(on_reject="flag", novelty=step("novelty", bank=step("lesion_bank"), limit=0.05))],
    ),
    "validated novelty from a file": Setting(
        [judged_edit(novelty=step("lesion_bank", saved=True, data={"lesion": (42.0, 22.0, 7.0)}), on_reject="retry", max_tries=2,
            min_dice=0.0, min_coverage=0.0, min_change=0.0, max_false_positive=9.0,
            of_edit={"noise_source": "inverted", "guidance_scale": 1.0})],
        {"target": (42.0, 22.0, 7.0)},
    ),
    "validated dynamic threshold": Setting(
        [judged_edit(dynamic=True, dynamic_quantile=0.9, dynamic_length=2, min_dice=0.5, on_reject="flag")],
        calls=4,
    ),
    "validated refined label": Setting([judged_edit(refine_label=True, label_value=3, of_edit={"label_value": 3})]),
    "validated known finding": Setting(
        [judged_edit(validator=central, label_value=2, rim=0.0, max_false_positive=0.02, on_reject="flag", of_edit={"label_value": 2})],
        {"lesion": (38.0, 24.0, 8.0), "label_value": 2},
    ),
    "validated finding that is not known": Setting(
        [
            edit(keep_original=True),
            judged(validator=central, box_margin=1.5, rim=0.0, max_false_positive=0.02, min_dice=0.1, on_reject="flag"),
        ],
        {"lesion": (38.0, 24.0, 8.0)},
    ),
    "validated volume by a callable": Setting(
        [judged_edit(of_edit={"plane": "sagittal"}, validator=central, plane="sagittal", context=1.5, min_side=20, size_px=48, batch_size=2,
            window=(40.0, 180.0), on_reject="flag")],
        {**VOLUME, "affine": "PSR"},
    ),
    "validated by a given LatentValidate": Setting(
        [judged_edit(validator=step("validate_array", min_dice=0.2, min_change=0.9), on_reject="flag")],
    ),
    "validate array form": Setting(
        [edit(keep_original=True), step("verdicts", "image mask image_original label", seed=9, least=0.99, window=(0.0, 220.0))],
        COLOUR,
    ),
    "validate array form, options": Setting(
        [
            edit(plane="coronal"),
            step("validate_array", "image mask twin", model="tiny", min_dice=0.99, min_coverage=0.98, min_change=0.9, window=(30.0, 200.0),
                plane="coronal", context=4.0, min_side=50, batch_size=3, device="cpu", dtype="float32"),
        ],
        {**VOLUME, "affine": "IRA"},
    ),
    "validate array form, callable": Setting(
        [step("verdicts", "image mask twin label", seed=2, least=0.2, model=central, max_false_positive=0.01, box_margin=1.5, rim=0.01,
            size_px=96, min_side=40)],
        {"lesion": (38.0, 24.0, 8.0)},
    ),
    # lesion banks
    "lesion bank": Setting(
        [step("of_bank", "image mask", bank=step("lesion_bank", group_key="patient", label_key="seg", image_key="twin", label_value=2,
            plane="sagittal", window=(60.0, 200.0), data={**VOLUME, "affine": "PSR", "rename": {"label": "seg"}, "label_value": 2,
            "other": (12.0, 12.0, 6.0)}))],
        {**VOLUME, "affine": "PSR"},
    ),
    "lesion bank of a datalist": Setting(
        [step("of_bank", "image mask", bank=step("listed_bank", section="validation", label_value=2, group_key="patient", plane="coronal",
            window=(0.0, 180.0)))],
        {"size": (64, 64, 6)},
    ),
    "novelty": Setting([step("novelty", "image label", bank=step("lesion_bank", saved=True), quantile=0.3)], {"seed": 20}),
    # MedSAMMaskd
    "outline defaults": Setting([step("outline", keys="image", label_key="label")]),
    "outline label boxes": Setting(
        [step("outline", keys=["image", "twin", "third"], mask_key=["mask", "second", "absent"], label_key="label", label_value=2,
            box="label", jitter_px=90.0, window=(60.0, 170.0), allow_missing_keys=True)],
        {"label_value": 2, "other": (14.0, 44.0, 5.0), **COLOUR},
    ),
    "outline two lesions, one box": Setting(
        [step("outline", keys="image", label_key="label", max_parts=0, min_iou=0.1)],
        {"other": (46.0, 44.0, 7.0)},
    ),
    "outline two lesions, small parts refused": Setting(
        [step("outline", keys="image", label_key="label", area_range=(0.02, 0.5))],
        {"other": (14.0, 44.0, 4.0)},
    ),
    "outline doubted": Setting([step("outline", keys="image", label_key="label", min_iou=0.99)]),
    "outline whole image, bfloat16": Setting(
        [step("outline", keys="image", box="image", min_iou=0.0, model="tiny", device="cpu", dtype="bfloat16")],
    ),
    "outline given box": Setting([step("outline", keys="image", box=(12.0, 33.0, 32.0, 52.0), mask_key="found")]),
    "outline callable's box in a volume": Setting(
        [step("outline", keys="image", box=box_of_slice, plane="coronal", batch_size=2, min_iou=0.2)],
        {**VOLUME, "affine": "IRA"},
    ),
    "outline propagated through a volume": Setting(
        [step("outline", keys="image", label_key="label", propagate=True, min_iou=0.2, plane="sagittal")],
        {**VOLUME, "affine": "PSR"},
    ),
    "outline propagated from a given box": Setting(
        [step("outline", keys="image", box=(12.0, 33.0, 32.0, 52.0), propagate=True, min_iou=0.1, max_parts=1)],
        {**VOLUME, "affine": "RAS", **HU},
    ),
    "outline coins": Setting([step("outline", keys="image", label_key="label", prob=0.5)], {"holder": "numpy"}, calls=3),
    "outline array form": Setting(
        [step("outline_array", "image label", model="tiny", box=None, label_value=1, jitter_px=4, max_parts=2, propagate=True,
            plane="sagittal", min_iou=0.15, area_range=(0.001, 0.6), window=(-300.0, 300.0), batch_size=3, device="cpu", dtype="bfloat16",
            prob=0.8)],
        {**VOLUME, "affine": "PSR", **HU, "other": (14.0, 44.0, 6.0)}, calls=2,
    ),
    "outline array form, two lesions": Setting(
        [step("outline_array", "image label", box="label", max_parts=0, min_iou=0.1)],
        {"other": (46.0, 44.0, 7.0)},
    ),
    "outline array form, doubted": Setting([step("outline_array", "image label", min_iou=0.99)]),
    "outline array form, given box": Setting([step("outline_array", "image", box=(12.0, 33.0, 32.0, 52.0), area_range=(0.06, 0.9))]),
    # PlaceMaskd, SoftMaskd, EdgeMapd, TextPromptd
    "place defaults": Setting([step("place", keys=["image", "twin"])], calls=3),
    "place ellipse in a region of a volume": Setting(
        [step("place", keys=["absent", "image"], mask_key="found", shape="ellipse", region_key="mask", size_range=(0.1, 0.15),
            depth_mm=20.0, plane="sagittal", allow_missing_keys=True)],
        {**VOLUME, "affine": "PSR", "target": (30.0, 34.0, 20.0)},
    ),
    "place shape of a function, beside the label": Setting(
        [step("place", keys="image", shape=corner, label_key="label", size_range=(0.3, 0.4), tissue_above=0.4)],
        {"holder": "meta", "affine": "oblong pixels", "dtype": "uint8", "lesion": (32.0, 32.0, 22.0)}, calls=2,
    ),
    "place bank of arrays": Setting(
        [step("place", keys="image", bank=[discs((20, 30), (30, 40), k) for k in (8.0, 14.0)], scale_range=(0.5, 0.9))],
        calls=2,
    ),
    "place bank of files": Setting([step("place", keys="image", bank=step("outline_files"), depth_mm=0.0)], VOLUME, calls=3),
    "place, then edit, where there may be no place": Setting(
        [step("place", keys="image", region_key="label", prob=0.5), edit(num_inference_steps=1)],
        {"holder": "meta", "affine": "RAS", "lesion": (32.0, 32.0, 6.5)}, calls=5,
    ),
    "place array form": Setting(
        [step("place_array", "image mask", shape="ellipse", size_range=(0.2, 0.5), depth_mm=12.0, plane="coronal")],
        {**VOLUME, "affine": "IRA", "target": (30.0, 34.0, 24.0)},
    ),
    "place array form, bank": Setting(
        [step("place_array", "image", bank=[discs((20, 30), (30, 40), 12.0)], scale_range=(1.0, 1.1), tissue_above=0.5, prob=0.5)],
        calls=3,
    ),
    "soften defaults": Setting([step("soften", keys="mask")]),
    "soften inner edge": Setting([step("soften", keys="mask", width_px=5.0, mode="inner")], {"holder": "numpy"}),
    "soften volume in mm": Setting(
        [step("soften", keys=["mask", "label", "third"], width_mm=2.0, mode="centre", plane="sagittal", allow_missing_keys=True)],
        {**VOLUME, "affine": "PSR"},
    ),
    "soften array form": Setting([step("soften_array", "mask", width_px=4.0, mode="inner")], {"holder": "numpy"}),
    "soften array form in mm": Setting(
        [step("soften_array", "mask", width_mm=1.5, width_px=0.0, mode="grow", plane="coronal")],
        {**VOLUME, "affine": "IRA"},
    ),
    "edges defaults": Setting([step("edges", keys="image")]),
    "edges canny": Setting(
        [step("edges", keys=["image", "twin", "third"], output_key=["one", "two", "three"], mask_key="region", method="canny", sigma_px=1.0,
            low=0.05, high=0.3, keep_inside=False, window=(80.0, 140.0), allow_missing_keys=True)],
        {"lesion": (30.0, 34.0, 7.0), "rename": {"mask": "region"}, **COLOUR},
    ),
    "edges canny, thresholds": Setting([step("edges", keys="image", low=0.6, high=0.9, sigma_px=0.5)]),
    "edges scharr in a volume": Setting(
        [step("edges", keys="image", method="scharr", sigma_px=2.0, plane="coronal")],
        {**VOLUME, "affine": "IRA", **HU},
    ),
    "edges of a function": Setting([step("edges", keys="image", method=darkness)], {"dtype": "uint8", "holder": "numpy"}),
    "edges array form": Setting(
        [step("edges_array", "image mask", method="canny", sigma_px=0.5, low=0.3, high=0.9, keep_inside=False, window=(40, 200),
            plane="sagittal")],
        {**VOLUME, "affine": "PSR", "lesion": (30.0, 34.0, 7.0)},
    ),
    "edges array form, network": Setting([step("edges_array", "image mask", method=step("darkness"))]),
    "text defaults": Setting([step("text", modality="ultrasound")], calls=5),
    "text options": Setting(
        [step("text", keys=["prompt", "caption"], modality="MR", anatomy=["brain", "prostate"], finding=["glioma", "metastasis"],
            attributes=("shape", "signal"), attribute_prob=0.9, template="{finding} ({attributes}) in the {anatomy}, {modality}",
            prob=0.7)],
        calls=4,
    ),
    "text mix of an own vocabulary": Setting(
        [step("text", modality="heat", vocabulary=Words(), mix=3, attributes={"edge": ("sharp", "dull")}, prob=0.6)],
        calls=4,
    ),
    "text array form": Setting(
        [step("text_array", " ", modality="CT", anatomy="chest", finding="calcified plaque", attributes="margin", attribute_prob=1.0,
            template="{modality}, {finding}, {attributes}, {anatomy}", mix=2, prob=0.8)],
        calls=3,
    ),
    "text array form, own vocabulary": Setting([step("text_array", " ", modality="heat", vocabulary=Words())], calls=3),
    # real and synthetic images
    "merge defaults": Setting([step("merge", keys="image", synthetic_keys="twin")]),
    "merge options": Setting(
        [step("merge", keys=["image", "third"], synthetic_keys=["twin", "fourth"], alpha=0.3, patch_fraction=0.25, merge_mask_key="real",
            prob=0.6, allow_missing_keys=True)],
        {**VOLUME, "affine": "PSR", **HU}, calls=3,
    ),
    "merge array form": Setting(
        [step("merge_array", "image twin", alpha=0.7, patch_fraction=0.1, prob=0.5)],
        {"holder": "numpy", **COLOUR}, calls=2,
    ),
    "choose": Setting(
        [step("choose", keys=["first", "second", "third"], ratio=3, allow_missing_keys=True)],
        {"first": list("abcde"), "second": list("vwxyz")}, calls=4,
    ),
    "choose defaults": Setting([step("choose")], {"synthetic": list("abcdefgh")}, calls=4),
    "choose array form": Setting([step("choose_array", "names", ratio=4)], {"names": list("abcdefgh")}, calls=4),
    "loss of one class": Setting([step("loss", "label", alpha=0.4, patch_fraction=0.2)]),
    "loss of classes": Setting([step("loss", "label", classes=3)], {"label_value": 2}),
    "loss of an own criterion": Setting([step("loss", "label", criterion=torch.nn.functional.mse_loss, alpha=0.8)]),
    # caches, banks and loaders
    "cached": Setting([step("cached", transform=edit(num_inference_steps=1, prob=0.5), seed=4, id_key="id", draws=2)], calls=3),
    "cached pipeline, epoch": Setting(
        [step("cached", transform=step("compose", steps=[step("place", keys="image"), step("text", modality="CT")]), seed=5, id_key="id",
            epoch=3)],
        {"holder": "meta"}, calls=3,
    ),
    "variants in memory": Setting(
        [step("draw_variant", setting="inpaint coins", seed=4, variants=2, uses=2, limit=3, id_key="id", background=False)],
        calls=5,
    ),
    "variants in a folder": Setting(
        [step("draw_variant", setting="two edits in one pipeline", seed=2, variants=2, folder=True, background=False)],
        {"holder": "meta", "affine": "RAS"}, calls=3,
    ),
    "variant of the background": Setting(
        [step("draw_variant", setting="place defaults", seed=3, variants=1, uses=None, background=True)],
        calls=2,
    ),
    "packed keys": Setting(
        [
            step("placeholders", keys=["image_diffaug", "note"]),
            edit(num_inference_steps=1),
            step("pack", keys=["prompt", "image_diffaug", "third"], allow_missing_keys=True),
            step("unpack", keys=["prompt", "image_diffaug", "third"], array_keys=["image", "mask"], allow_missing_keys=True),
        ],
        {"holder": "meta", "image_meta_dict": {"affine": torch.from_numpy(AFFINES["oblique"])}},
    ),
    "thread loader": Setting(
        [step("thread_loader", transform=step("cached", transform=edit(num_inference_steps=1), seed=8, id_key="id", draws=1), count=3,
            batch_size=2, num_workers=0)],
    ),
    # presets
    "mila_tmgdiff": Setting([step("preset", name="mila_tmgdiff", modality="ultrasound")], calls=3),
    "mila_tmgdiff options": Setting(
        [step("preset", name="mila_tmgdiff", image_key="scan", label_key="seg", modality="CT", finding="calcified plaque", anatomy="chest",
            label_value=2, noise_scale=0.8, noise_source="random", num_inference_steps=2, min_iou=0.05, window=(-400.0, 300.0),
            plane="sagittal", model="tiny", medsam="tiny", device="cpu", prob=0.2)],
        {**VOLUME, "affine": "PSR", **HU, "label_value": 2, "rename": {"image": "scan", "label": "seg"}, "lacks": ("mask", "prompt")},
        calls=2,
    ),
    "mila_tmgdiff doubted": Setting([step("preset", name="mila_tmgdiff", modality="ultrasound", prob=1.0, min_iou=0.99)]),
    "diffaug": Setting([step("preset", name="diffaug", modality="ultrasound")], calls=2),
    "diffaug options": Setting(
        [step("preset", name="diffaug", image_key="scan", label_key="seg", modality="US", finding=["malignant mass", "abscess"],
            anatomy="knee", label_value=2, shape="ellipse", region_key="where", size_range=(0.2, 0.3), depth_mm=5.0, num_inference_steps=4,
            max_tries=2, min_dice=0.5, window=(10.0, 200.0), plane="sagittal", model="tiny", validator="tiny", device="cpu", prob=0.22)],
        {**VOLUME, "affine": "PSR", "target": (20.0, 44.0, 16.0), "rename": {"image": "scan", "label": "seg", "mask": "where"}}, calls=2,
    ),
    "diffaug refined label": Setting(
        [step("preset", name="diffaug", modality="ultrasound", size_range=(0.25, 0.3), num_inference_steps=4, dynamic=True,
            refine_label=True, screen="tiny", prob=1.0)],
        calls=3,
    ),
    "diffaug refuses copies": Setting(
        [step("preset", name="diffaug", modality="ultrasound", finding="malignant mass", size_range=(0.25, 0.3), num_inference_steps=3,
            max_tries=2, novelty=step("novelty", bank=step("lesion_bank"), limit=0.2), prob=1.0)],
    ),
    "diffaug with a bank": Setting(
        [step("preset", name="diffaug", modality="endoscopy", bank=step("outline_files"), scale_range=(1.6, 1.7), num_inference_steps=1,
            validator=central)],
        COLOUR, calls=3,
    ),
    "emit_diff": Setting([step("preset", name="emit_diff", modality="ultrasound")]),
    "emit_diff options": Setting(
        [step("preset", name="emit_diff", image_key="scan", label_key="seg", modality="x-ray", finding="dark spot", anatomy="bone",
            strength=0.7, roi=True, num_inference_steps=3, guidance_scale=4.0, control_scale=0.6, window=(30.0, 210.0), plane="coronal",
            model="tiny", controlnet="tiny", device="cpu", prob=0.25)],
        {"size": (64, 64, 2), "holder": "meta", "affine": "IRA", "rename": {"image": "scan", "label": "seg"}}, calls=2,
    ),
    "emit_diff whole slices": Setting(
        [step("preset", name="emit_diff", modality="ultrasound", prob=1.0, roi=False, num_inference_steps=2)],
    ),
    "medsoft_diffusion": Setting([step("preset", name="medsoft_diffusion", modality="ultrasound")], calls=3),
    "medsoft_diffusion options": Setting(
        [step("preset", name="medsoft_diffusion", image_key="scan", label_key="seg", modality="CT", finding="bright spot", anatomy="pelvis",
            label_value=2, soft_width=9.0, num_inference_steps=2, min_iou=0.05, window=(-400.0, 300.0), plane="sagittal", model="tiny",
            semantic_controller="tiny", medsam="tiny", device="cpu", prob=0.2)],
        {**VOLUME, "affine": "PSR", **HU, "label_value": 2, "rename": {"image": "scan", "label": "seg"}}, calls=2,
    ),
    "medsoft_diffusion edge in mm": Setting(
        [step("preset", name="medsoft_diffusion", modality="ultrasound", soft_width_mm=3.0, num_inference_steps=2)],
        COLOUR, calls=2,
    ),
    "medsoft_diffusion doubted": Setting([step("preset", name="medsoft_diffusion", modality="ultrasound", prob=1.0, min_iou=0.99)]),
}
# fmt: on


# ----------------------------------------------------------------------------------------------------------------- record


def results(setting: Setting) -> dict[str, Any]:
    """What a setting adds to its sample and changes in it: place -> array, record or text; and the names of what it leaves as it was.

    Of several calls "item 0", "item 1", ...
    """
    steps = made(setting.steps)
    transform = steps[0] if setting.seed is None else Compose(steps).set_random_state(seed=setting.seed)
    samples = [sample(**{"seed": seed, **setting.data}) for seed in range(setting.batch or 1)]
    given = list_data_collate(samples) if setting.batch else samples[0]
    before = {place: hash_of(value) for item, each in given.items() for place, value in leaves(item, each)}
    found: dict[str, Any] = {}
    for call in range(setting.calls):
        try:
            result = dict(transform(dict(given)))
        except RuntimeError as error:
            if not setting.fails:
                raise
            result = {"error": repr(error.__cause__)}
        after = {place: value for item, each in result.items() for place, value in leaves(str(item), each)}
        changed = {place: value for place, value in after.items() if before.get(place) != hash_of(value)}
        after = {**changed, "unchanged": sorted(after.keys() - changed.keys())}
        found |= after if setting.calls == 1 else {f"{place} {call}": value for place, value in after.items()}
    for each in Compose(steps).flatten().transforms:
        found |= {f"its {name}": getattr(each, name) for name in ("statistics", "threshold") if hasattr(each, name)}
    return found


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Arrays, records and texts in a value, with their places."""
    if is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, (np.ndarray, torch.Tensor)) or is_json(value):
        yield name, value
        return
    parts = value.items() if isinstance(value, Mapping) else enumerate(value)
    for place, each in parts:
        yield from leaves(f"{name}.{place}", each)


def is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


MEASURED = ("contrast", "cnr", "size_mm")  # fields of a record that follow from the image and the mask, whose hashes are kept


def as_json(value: Any) -> str:
    """A record or text as JSON, without the process and address in the name of a live model, and without ``MEASURED``."""
    if isinstance(value, Mapping) and set(MEASURED) <= set(value):
        value = {name: each for name, each in value.items() if name not in MEASURED}
    return re.sub(r"(object:\w+)-\d+-[0-9a-f]+", r"\1", json.dumps(value, sort_keys=True))


def hash_of(value: Any) -> str:
    """SHA-256 of an array's holder, type, shape, bytes and affine; of all else that of its JSON."""
    if not isinstance(value, (np.ndarray, torch.Tensor)):
        return hashlib.sha256(as_json(value).encode()).hexdigest()
    array = np.ascontiguousarray(torch.as_tensor(value).detach().numpy())
    digest = hashlib.sha256(f"{type(value).__name__} {array.dtype} {array.shape}".encode() + array.tobytes())
    if isinstance(value, MetaTensor):
        digest.update(np.asarray(value.affine, np.float64).tobytes())
    return digest.hexdigest()


def summary_of(value: Any) -> Any:
    """What is nearly the same on every processor."""
    if not isinstance(value, (np.ndarray, torch.Tensor)):
        return rounded(json.loads(as_json(value)))
    array = np.asarray(torch.as_tensor(value).detach().numpy())
    finite = array[np.isfinite(array)].astype(np.float64)
    summary: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if finite.size:
        summary |= {"mean": round(float(finite.mean()), 3), "std": round(float(finite.std()), 3)}
    return summary | ({"voxels": int(np.count_nonzero(array))} if array.dtype.kind in "biu" else {})


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


def apart(before: Any, now: Any, tolerance: float) -> bool:
    """Two summaries differ by more than ``tolerance`` (relative for numbers above 1); numbers in texts do not count."""
    if isinstance(before, dict) and isinstance(now, dict):
        return before.keys() != now.keys() or any(apart(before[name], now[name], tolerance) for name in before)
    if isinstance(before, list) and isinstance(now, list):
        return len(before) != len(now) or any(apart(*pair, tolerance) for pair in zip(before, now, strict=True))
    if isinstance(before, str) and isinstance(now, str):
        return re.sub(r"\d+\.\d+", "#", before) != re.sub(r"\d+\.\d+", "#", now)
    if isinstance(before, (int, float)) and isinstance(now, (int, float)) and not isinstance(before, bool):
        return abs(before - now) > tolerance * max(1.0, abs(before))
    return bool(before != now)


def entry(name: str) -> dict[str, Any]:
    """The record of a setting: for each item its hash and its summary."""
    found = results(SETTINGS[name])
    return {each: {place: of(value) for place, value in found.items()} for each, of in (("sha256", hash_of), ("summary", summary_of))}


def machine() -> dict[str, str]:
    """What the hashes of float results hold for."""
    import diffusers
    import monai

    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    versions = {module.__name__: module.__version__ for module in (np, torch, monai, diffusers)}
    return {"processor": names[0] if names else "unknown", "capability": torch.backends.cpu.get_cpu_capability(), **versions}


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings whose hashes differ, with the items that do."""
    lines = []
    for name in dict.fromkeys((*before, *now)):
        old, new = (each.get(name, {}).get("sha256", {}) for each in (before, now))
        items = [item for item in dict.fromkeys((*old, *new)) if old.get(item) != new.get(item)]
        lines += [f"{name}: {', '.join(items)}"] if items else []
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Record what the transforms make of synthetic images, or compare with a record.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FILE.json")
    action.add_argument("--check", type=Path, metavar="FILE.json")
    parser.add_argument("--only", default="", metavar="TEXT", help="settings whose name holds this text")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    begin = perf_counter()
    now = {name: entry(name) for name in SETTINGS if options.only in name}
    print(f"{len(now)} settings of {Path(da.__file__).parent} in {perf_counter() - begin:.0f} s")
    if options.write:
        options.write.write_text(json.dumps({"machine": machine(), "settings": now}, indent=1) + "\n")
        return 0
    stored = json.loads(options.check.read_text())
    if stored["machine"] != machine():
        print(f"the record is of another machine or other versions: {stored['machine']}, here {machine()}")
    lines = differing({name: each for name, each in stored["settings"].items() if options.only in name}, now)
    print("\n".join(lines) if lines else "all hashes are as recorded")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
