"""Pictures of what each transform does, painted by the embedded models while the site is built.

The images are the MNI152 T1 template that ships inside nilearn, the fundus photograph inside scikit-image, and drawings that
look like breast ultrasound. No picture is retouched, and no seed was chosen for its result: every seed counts from 0.

``python docs/pictures.py DIR [NAME ...]`` writes all pictures, or the named ones, as DIR/NAME.png.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[Any]
STEPS = 8  # of the sampler: half a second per edit on one core
GLIOMA = "MRI of brain, glioma, hypointense"
MASS = "ultrasound of breast, malignant mass"
NORMAL = "ultrasound of breast, normal tissue"


class Panel(NamedTuple):
    """One picture of a row: (C, h, w) values, its title, and masks whose outlines are drawn."""

    image: Array
    title: str
    outlines: Sequence[Array] = ()


# -- images ------------------------------------------------------------------------------------------------------------------------


@cache
def brain_volume() -> Any:
    """(1, 197, 233, 189) float32 MetaTensor: the MNI152 T1 template, 1 mm."""
    import nilearn
    from monai.transforms import LoadImage

    file = Path(nilearn.__file__).parent / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    return LoadImage(image_only=True, ensure_channel_first=True)(file)


@cache
def brain() -> Array:
    """(1, 233, 197) float32: one axial slice of the template, front side up."""
    return np.rot90(np.asarray(brain_volume())[0, :, :, 95])[None].astype(np.float32)


@cache
def white_matter() -> Array:
    """(1, 233, 197) uint8: the white matter of the same slice, as an organ in which a lesion may lie."""
    import nibabel
    import nilearn

    file = Path(nilearn.__file__).parent / "datasets/data/mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz"
    share = np.rot90(np.asarray(nibabel.load(file).dataobj[..., 95], np.float32))[None]
    return (share > 0.6 * share.max()).astype(np.uint8)


@cache
def retina() -> Array:
    """(3, 512, 512) uint8: a fundus photograph."""
    from PIL import Image
    from skimage import data

    return np.asarray(Image.fromarray(data.retina()).resize((512, 512))).transpose(2, 0, 1)


@cache
def ultrasound(seed: int, mass: bool = True, size: int = 256) -> tuple[Array, Array]:
    """A drawing like a breast ultrasound, (1, size, size) uint8, and the mask of its mass, empty without one."""
    rng = np.random.RandomState(seed)

    def field(*sigma: float) -> Array:
        smooth = gaussian_filter(rng.standard_normal((size, size)), sigma, mode="wrap")
        return smooth / smooth.std()

    rows, columns = np.indices((size, size))
    y, x = rng.uniform(105, 140), rng.uniform(85, 170)
    angle, distance = np.arctan2(rows - y, columns - x), np.hypot((rows - y) * rng.uniform(1.2, 1.7), columns - x)
    inside = distance < rng.uniform(24, 36) * (1 + sum(rng.uniform(0, 0.1) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5)))
    depth, septa = rows / size, np.abs(field(7, 16)) < 0.12
    echo = np.where(depth < 0.68 + 0.04 * field(size, 40), 0.62 + 0.12 * field(6, 14), 0.55 + 0.1 * field(2, 40))  # gland over muscle
    echo = np.where(depth < 0.3 + 0.05 * field(size, 35), 0.38 + 0.06 * field(8, 16) + 0.25 * septa, echo)  # fat over gland
    echo = np.where(depth < 0.05, 0.85, echo) * (1 - 0.45 * depth)  # skin, and loss with depth
    weight = gaussian_filter(inside.astype(float), 1.5) * mass
    echo = echo * (1 - weight) + (0.18 + 0.03 * field(4, 4)) * weight
    speckle = 1.1 + 0.32 * np.log(np.hypot(field(0.8, 1.5), field(0.8, 1.5)) + 0.12)
    image = gaussian_filter(255 * gaussian_filter(echo, 1) * speckle, 0.5).clip(0, 255)
    return image[None].astype(np.uint8), (inside & mass)[None].astype(np.uint8)


def ellipse(like: Array, centre_xy: tuple[int, int], radii_xy: tuple[int, int]) -> Array:
    """(1, h, w) uint8."""
    rows, columns = np.indices(like.shape[1:])
    return (np.hypot((columns - centre_xy[0]) / radii_xy[0], (rows - centre_xy[1]) / radii_xy[1]) < 1)[None].astype(np.uint8)


@cache
def lesion() -> Array:
    """(1, 233, 197) uint8: an ellipse in the white matter of ``brain``."""
    return ellipse(brain(), (137, 100), (15, 20))


# -- pictures ----------------------------------------------------------------------------------------------------------------------


def diffusion_local_inpaint() -> list[list[Panel]]:
    image, mask = brain(), lesion()
    result = _paint(image, mask, GLIOMA)
    return [_zoomed([Panel(image, "image"), Panel(image, "mask", [mask]), Panel(result, "result"), _difference(image, result)], mask)]


def strength() -> list[list[Panel]]:
    image, mask = ultrasound(0)
    panels = [Panel(image, "image", [mask])]
    panels += [Panel(_paint(image, mask, MASS, strength=s), f"strength {s}") for s in (0.25, 0.5, 0.75, 1.0)]
    return [_zoomed(panels, mask)]


def guidance() -> list[list[Panel]]:
    image, mask = brain(), lesion()
    panels = [Panel(image, "image", [mask])]
    panels += [Panel(_paint(image, mask, GLIOMA, guidance_scale=g), f"guidance_scale {g:g}") for g in (1.0, 3.0, 6.0, 9.0)]
    return [_zoomed(panels, mask)]


def seeds() -> list[list[Panel]]:
    image, mask = brain(), lesion()
    return [_zoomed([Panel(image, "image", [mask]), *(Panel(_paint(image, mask, GLIOMA, seed=s), f"seed {s}") for s in range(4))], mask)]


def noise() -> list[list[Panel]]:
    from monai_diffaug import InpaintOptions, Noise

    image, mask = ultrasound(0)
    rows = []
    for source in ("random", "inverted"):
        panels = [Panel(image, "image", [mask])]
        for scale in (0.0, 0.3, 0.6, 1.0):
            options = InpaintOptions(noise=Noise(source=source, scale=scale))
            panels.append(Panel(_paint(image, mask, MASS, guidance_scale=1.0, options=options), f"{source}, scale {scale:g}"))
        rows.append(_zoomed(panels, mask))
    return rows


def texture() -> list[list[Panel]]:
    from monai_diffaug import InpaintOptions, Noise, Region

    image, mask = ultrasound(0)
    panels = [Panel(image, "image", [mask])]
    for name, options in (
        ("defaults", InpaintOptions()),
        ("bicubic: less context", InpaintOptions(region=Region(resample="bicubic", least_context=1.5))),
        ("Noise(gain=0.1)", InpaintOptions(noise=Noise(gain=0.1))),
        ("Noise(gain=0.25)", InpaintOptions(noise=Noise(gain=0.25))),
    ):
        panels.append(Panel(_paint(image, mask, MASS, options=options), name))
    return [_zoomed(panels, mask)]


def soft_edge() -> list[list[Panel]]:
    from monai_diffaug import InpaintOptions, SoftEdge

    image, mask = brain(), lesion()
    panels = [Panel(image, "image", [mask])]
    for width, mode in ((0.0, "grow"), (16.0, "grow"), (16.0, "centre"), (16.0, "inner")):
        options = InpaintOptions(soft_edge=SoftEdge(width_px_at_512=width, mode=mode))
        panels.append(Panel(_paint(image, mask, GLIOMA, options=options), f"width {width:g}, {mode}" if width else "width 0 (hard)"))
    return [_zoomed(panels, mask)]


def region() -> list[list[Panel]]:
    from monai_diffaug import InpaintOptions, Region

    image, mask = brain(), lesion()
    panels = [Panel(image, "image", [mask])]
    for name, value in (
        ("context 1.5", Region(context=1.5)),
        ("context 2", Region()),
        ("context 4", Region(context=4.0)),
        ("whole_slice", Region(whole_slice=True)),
    ):
        panels.append(Panel(_paint(image, mask, GLIOMA, options=InpaintOptions(region=value)), name))
    return [_zoomed(panels, mask)]


def control() -> list[list[Panel]]:
    from monai_diffaug import ControlNet, InpaintOptions, SemanticController

    image, mask = brain(), lesion()
    panels = [Panel(image, "image", [mask])]
    for name, value in (
        ("control=None", None),
        ("ControlNet()", ControlNet()),
        ("ControlNet(inside=False)", ControlNet(inside=False)),
        ("SemanticController()", SemanticController()),
    ):
        panels.append(Panel(_paint(image, mask, GLIOMA, options=InpaintOptions(control=value)), name))
    return [_zoomed(panels, mask)]


def medsam_mask() -> list[list[Panel]]:
    from monai_diffaug import MedSAMMask, MedSAMMaskd

    image, label = ultrasound(0)
    rows, columns = np.nonzero(label[0])
    box = np.zeros_like(label)
    box[0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1
    exact = MedSAMMask(box=(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))(image)
    jittered = MedSAMMaskd("image", label_key="label", jitter_px=40).set_random_state(seed=0)
    draws = [np.asarray(jittered({"image": image, "label": label})["mask"]) for _ in range(2)]
    panels = [Panel(image, "image"), Panel(image, "box of the label", [box]), Panel(image, "mask", [exact])]
    return [_zoomed([*panels, *(Panel(image, f"jittered box, draw {i}", [mask]) for i, mask in enumerate(draws))], label)]


def place_mask() -> list[list[Panel]]:
    from monai_diffaug import PlaceMask

    image, label = ultrasound(1)
    _, outline = ultrasound(2)
    places = {
        "shape='blob'": PlaceMask(size_range=(0.15, 0.25)),
        "shape='ellipse'": PlaceMask(shape="ellipse", size_range=(0.15, 0.25)),
        "bank of outlines": PlaceMask([outline], scale_range=(0.5, 0.8)),
    }
    panels = [Panel(image, "image and label", [label])]
    panels += [Panel(image, name, [place.apply(image, None, label, seed=1), label]) for name, place in places.items()]
    organ = white_matter()
    mask = PlaceMask(size_range=(0.12, 0.16)).apply(brain(), organ, seed=0)
    whole = Panel(_squared(brain()), "within a region", [_squared(np.asarray(mask)), _squared(organ)])
    return [[*panels, whole]]


def text_prompt() -> list[list[Panel]]:
    image, mask = ultrasound(3, mass=False)[0], ultrasound(3)[1]
    words = ("malignant mass, hypoechoic", "malignant mass, hyperechoic", "benign mass", "normal tissue")
    panels = [Panel(image, "image", [mask])]
    return [_zoomed([*panels, *(Panel(_paint(image, mask, f"ultrasound of breast, {text}"), text) for text in words)], mask)]


def soft_mask() -> list[list[Panel]]:
    from monai_diffaug import SoftMask

    mask = lesion()
    weights = {mode: np.asarray(SoftMask(4.0, mode=mode)(mask)) * 255 for mode in ("grow", "centre", "inner")}
    return [_zoomed([Panel(mask * 255, "mask"), *(Panel(weight, f"mode={mode!r}", [mask]) for mode, weight in weights.items())], mask)]


def edge_map() -> list[list[Panel]]:
    from monai_diffaug import EdgeMap

    image, mask = brain(), lesion()
    maps = {
        "canny": EdgeMap(),
        "scharr": EdgeMap("scharr"),
        "canny, keep_inside=False": EdgeMap(keep_inside=False),
    }
    return [[Panel(image, "image and mask", [mask]), *(Panel(np.asarray(draw(image, mask)) * 255, name) for name, draw in maps.items())]]


def latent_validate() -> list[list[Panel]]:
    from monai_diffaug import LatentValidate

    image, mask = ultrasound(3, mass=False)[0], ultrasound(3)[1]
    judge, panels = LatentValidate(), [Panel(image, "image", [mask])]
    for title, prompt, seed in (("seed 0", MASS, 0), ("seed 1", MASS, 1), ("seed 2", MASS, 2), ("normal tissue", NORMAL, 0)):
        result = _paint(image, mask, prompt, seed=seed)
        verdict = judge(result, mask, image)
        found = np.asarray(verdict.predicted, np.uint8)
        panels.append(Panel(result, f"{title}: Dice {verdict.score:.2f}, {'accepted' if verdict.accepted else 'rejected'}", [mask, found]))
    return [_zoomed(panels, mask)]


def patch_merge() -> list[list[Panel]]:
    from monai_diffaug import RandPatchMerge, Region, presets

    image, label = ultrasound(0)
    synthetic = _preset(presets.emit_diff, image, label, strength=0.6, region=Region(whole_slice=True))["image"]
    merged, real = RandPatchMerge(alpha=0.6).merge(image, synthetic, seed=0)
    panels = [Panel(image, "real", [label]), Panel(synthetic, "synthetic", [label]), Panel(merged, "merged", [label])]
    return [[*panels, Panel(np.asarray(real) * 255, "real where white")]]


def rand_synthetic() -> list[list[Panel]]:
    from monai_diffaug import RandSynthetic

    image, mask = ultrasound(0)
    twins = [_paint(image, mask, MASS, seed=seed) for seed in range(3)]
    pick = RandSynthetic().set_random_state(seed=0)
    picks = [pick(range(len(twins))) for _ in range(4)]
    draws = [Panel(twins[index], f"draw {i}: candidate {index}") for i, index in enumerate(picks)]
    return [_zoomed([Panel(image, "real", [mask]), *draws], mask)]


def cached_random() -> list[list[Panel]]:
    from monai_diffaug import CachedRandomd, PlaceMaskd

    image, _ = ultrasound(1, mass=False)
    place = PlaceMaskd("image", size_range=(0.15, 0.25))
    rows = []
    for name, transform in (
        ("PlaceMaskd", place.set_random_state(seed=0)),
        ("CachedRandomd(draws=2)", CachedRandomd(place, seed=0, id_key="id", draws=2)),
        ("CachedRandomd(draws=1)", CachedRandomd(place, seed=0, id_key="id", draws=1)),
    ):
        masks = [np.asarray(transform({"id": "a", "image": image})["mask"]) for _ in range(4)]
        rows.append([Panel(image, f"{name}, call {i}", [mask]) for i, mask in enumerate(masks)])
    return rows


def batch() -> list[list[Panel]]:
    import torch

    from monai_diffaug import BatchLocalInpaint, DiffusionLocalInpaintd

    pairs = [ultrasound(seed) for seed in range(4)]
    images, masks = (torch.from_numpy(np.stack([pair[i] for pair in pairs])) for i in (0, 1))
    augment = BatchLocalInpaint(DiffusionLocalInpaintd("image", num_inference_steps=STEPS, prob=0.75), seed=0)
    result = augment({"image": images, "mask": masks, "prompt": [MASS] * 4})
    applied = result["image_diffaug"]["applied"].tolist()
    before = [Panel(image, f"sample {i}", [mask]) for i, (image, mask) in enumerate(pairs)]
    titles = ["repainted" if yes else "not triggered" for yes in applied]
    after = [Panel(np.asarray(image), title) for image, title in zip(result["image"], titles, strict=True)]
    return [before, after]


def variants() -> list[list[Panel]]:
    from monai_diffaug import DiffusionLocalInpaintd, DrawVariantd, VariantBank

    image, mask = ultrasound(0)
    bank = VariantBank(DiffusionLocalInpaintd("image", num_inference_steps=STEPS), seed=0, variants=3, background=False)
    draw = DrawVariantd(bank).set_random_state(seed=0)
    draws = [np.asarray(draw({"image": image, "mask": mask, "prompt": MASS})["image"]) for _ in range(4)]
    panels = [Panel(image, "image", [mask]), *(Panel(each, f"draw {i} (of 3 variants)") for i, each in enumerate(draws))]
    return [_zoomed(panels, mask)]


def lesion_novelty() -> list[list[Panel]]:
    from monai_diffaug import LesionBank, LesionNovelty

    samples = [dict(zip(("image", "label"), ultrasound(seed), strict=True)) for seed in range(12)]
    guard = LesionNovelty(LesionBank.of(samples), limit=0.9)
    image, mask = samples[0]["image"], samples[0]["label"]
    panels = [Panel(image, "a training lesion", [mask])]
    painted = _paint(image, mask, MASS)
    for title, picture, where in (
        ("its copy, mirrored", image[..., ::-1].copy(), mask[..., ::-1].copy()),
        ("its copy, darker", (image * 0.7).astype(np.uint8), mask),
        ("a painted lesion", painted, mask),
    ):
        verdict = guard(picture, where)
        panels.append(Panel(picture, f"{title}: {verdict.similarity:.2f}, {'new' if verdict.novel else 'refused'}", [where]))
    return [panels]


def erase_lesion() -> list[list[Panel]]:
    from monai_diffaug import EraseLesion

    image, mask = ultrasound(1)
    erase = EraseLesion("ultrasound of breast, normal tissue", window=(0, 255), num_inference_steps=STEPS)
    result = erase.set_random_state(seed=0)(image, mask)
    assert result.record["applied"], result.record
    panels = [Panel(image, "image", [mask]), Panel(np.asarray(result.image), "erased"), _difference(image, np.asarray(result.image))]
    return [_zoomed(panels, mask)]


def transplant_lesion() -> list[list[Panel]]:
    from monai_diffaug import DonorBank, TransplantLesion

    donor, outline = ultrasound(1)
    image, _ = ultrasound(2, mass=False)
    bank = DonorBank.of([{"image": donor, "label": outline, "modality": "ultrasound", "anatomy": "breast", "finding": "benign mass"}])
    panels = [Panel(donor, "donor", [outline]), Panel(image, "image")]
    for strength_ in (0.0, 0.3):
        result = TransplantLesion(bank, strength=strength_, window=(0, 255)).set_random_state(seed=4)(image, np.zeros_like(outline))
        assert result.record["applied"], result.record
        panels.append(Panel(np.asarray(result.image), f"strength {strength_:g}", [np.asarray(result.mask)]))
    return [panels]


def system_pictures() -> list[list[Panel]]:
    from monai_diffaug import PlaceMaskd, Region, presets

    image, label = ultrasound(0)
    empty = np.zeros_like(label)
    normal = ultrasound(3, mass=False)[0]
    mila = _preset(presets.mila_tmgdiff, image, label, noise_scale=0.8)
    medsoft = _preset(presets.medsoft_diffusion, image, label)
    emit = _preset(presets.emit_diff, image, label, strength=0.6, region=Region(whole_slice=True))
    place = PlaceMaskd("image", label_key="label", size_range=(0.2, 0.3))
    added = _preset(presets.diffaug, normal, empty, place=place)
    sources = {"mila_tmgdiff": image, "diffaug": normal, "emit_diff": image, "medsoft_diffusion": image}
    before = [Panel(source, f"{name}: before", [empty if name == "diffaug" else label]) for name, source in sources.items()]
    after = [Panel(np.asarray(s["image"]), "after", [np.asarray(s["label"])]) for s in (mila, added, emit, medsoft)]
    return [before, after]


def planes() -> list[list[Panel]]:
    from monai_diffaug import InpaintOptions, Noise

    volume = brain_volume()
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape[1:]), indexing="ij"))
    inside = (((grid - np.reshape((137, 130, 103), (3, 1, 1, 1))) / np.reshape((13, 16, 5.5), (3, 1, 1, 1))) ** 2).sum(0) <= 1
    mask = inside[None].astype(np.uint8)
    rows = []
    plain, shared, joined = Noise(acquisition=False), Noise(rho=1.0, acquisition=False), Noise(acquisition=True)
    settings = {"independent": (plain, 0.0), "rho 1": (shared, 0.0), "joined_mm 6, acquisition": (joined, 6.0)}
    for title, (noise_of, joined_mm) in settings.items():
        result = np.asarray(_paint(volume, mask, GLIOMA, options=InpaintOptions(noise=noise_of, joined_mm=joined_mm)))
        views = [(result[0, :, :, 103], mask[0, :, :, 103]), (result[0, :, 130, :], mask[0, :, 130, :]), (result[0, 137], mask[0, 137])]
        panels = []
        for name, (view, part) in zip(("axial", "coronal", "sagittal"), views, strict=True):
            turned, marked = np.rot90(view)[None], np.rot90(part)[None]
            panels += _zoomed([Panel(turned, f"{title}, {name}")], marked, reach=34)
        rows.append(panels)
    return rows


PICTURES: dict[str, Callable[[], list[list[Panel]]]] = {
    function.__name__: function
    for function in (
        diffusion_local_inpaint,
        strength,
        guidance,
        seeds,
        noise,
        texture,
        soft_edge,
        region,
        control,
        medsam_mask,
        place_mask,
        text_prompt,
        soft_mask,
        edge_map,
        latent_validate,
        patch_merge,
        rand_synthetic,
        cached_random,
        batch,
        variants,
        lesion_novelty,
        erase_lesion,
        transplant_lesion,
        system_pictures,
        planes,
    )
}


# -- drawing -----------------------------------------------------------------------------------------------------------------------


def write_pictures(folder: Path, names: Sequence[str] = ()) -> None:
    """Write the pictures as PNG files; all of them by default."""
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or PICTURES:
        _draw(folder / f"{name}.png", PICTURES[name]())


def _draw(path: Path, rows: list[list[Panel]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = max(len(row) for row in rows)
    figure, axes = pyplot.subplots(len(rows), columns, figsize=(2.0 * columns, 2.3 * len(rows)), squeeze=False, layout="constrained")
    for row, line in zip(axes, rows, strict=True):
        for axis in row:
            axis.axis("off")
        low, high = (0, 255) if line[0].image.dtype == np.uint8 else (0, max(float(panel.image.max()) for panel in line))
        for axis, panel in zip(row, line, strict=False):
            picture = panel.image[0] if panel.image.shape[0] == 1 else panel.image.transpose(1, 2, 0)
            axis.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="bicubic")
            for mask, colour in zip(panel.outlines, ("gold", "cyan"), strict=False):
                if mask.any():
                    axis.contour(np.asarray(mask)[0], [0.5], colors=colour, linewidths=1)
            axis.set_title(panel.title.replace(": ", ":\n"), fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight", pad_inches=0.05)
    pyplot.close(figure)


def _zoomed(panels: list[Panel], mask: Array, reach: int = 0) -> list[Panel]:
    """The same panels, cut to a square around the mask."""
    rows, columns = np.nonzero(mask[0])
    half = reach or int(max(np.ptp(rows), np.ptp(columns)) * 0.95) + 4
    y, x = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2

    def cut(array: Array) -> Array:
        return np.asarray(array)[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half]

    return [Panel(cut(panel.image), panel.title, [cut(each) for each in panel.outlines]) for panel in panels]


def _squared(image: Array) -> Array:
    """Pad the shorter side with zeros."""
    short = image.shape[1] - image.shape[2]
    return np.pad(image, ((0, 0), (0, 0), (short // 2, short - short // 2)))


def _difference(before: Array, after: Array) -> Panel:
    change = after[0].astype(float) - before[0].astype(float)
    share = change / max(np.abs(change).max(), 1e-9)
    colours = np.stack([1 - np.clip(-share, 0, 1), 1 - np.abs(share), 1 - np.clip(share, 0, 1)])
    return Panel(colours, f"difference, at most {np.abs(change).max():.0f}")


def _paint(image: Any, mask: Array, prompt: str, seed: int = 0, **options: Any) -> Any:
    from monai_diffaug import DiffusionLocalInpaint

    edit = DiffusionLocalInpaint(num_inference_steps=STEPS, **options).apply(image, mask, prompt, seed=seed)
    assert edit.record["applied"], edit.record
    return edit.image


def _preset(preset: Callable[..., Any], image: Array, label: Array, **options: Any) -> dict[Any, Any]:
    options = {"num_inference_steps": STEPS, **options}
    system = preset(modality="ultrasound", finding="malignant mass", prob=1.0, **options).set_random_state(seed=0)
    return dict(system({"image": image, "label": label}))


if __name__ == "__main__":
    write_pictures(Path(sys.argv[1]), sys.argv[2:])
