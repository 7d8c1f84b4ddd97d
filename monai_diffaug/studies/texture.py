"""The texture of painted lesions: as much as in real ones?

Real validation lesions are painted over, under their own masks and with the captions of what is there. Inside the mask, the standard
deviation of the fine texture (image - Gaussian of 1.5 pixels) and the root mean squares of a fine and a middle band (image - G1 and G1 -
G2) are divided by those of the real lesion: 1 is as much texture as there was. Next to them stand the same ratios of the autoencoder
alone, what the decoder makes of the real lesion. Brightness is the mean of the painted lesion minus that of the real one, in grey levels of
255; PSNR is that of the autoencoder in the square around the lesion, in dB. Medians over the lesions (PSNR: mean); 95 % intervals over
groups.

The second table has the radially averaged power spectrum inside the mask, as amplitudes of painted over real lesions in four bands of
wavelengths, and the seam: the jump across the mask's boundary over that of the original (1: no seam was added, see ``evaluate seam``).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.edit.options import InpaintOptions, Noise, Region
from monai_diffaug.geometry.roi import RESAMPLINGS, crop, paste, resize, roi_around, square_from
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.studies.bootstrap import Interval, interval
from monai_diffaug.studies.masked_images import MaskedImage, lesions_of
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.seam import seam
from monai_diffaug.studies.study_images import StudyData, StudyInputError
from monai_diffaug.training.captions import caption, measure
from monai_diffaug.training.decoder_loss import psnr_db

__all__ = [
    "FIGURES",
    "WAVELENGTHS",
    "Row",
    "TexturedLesion",
    "bands_of",
    "measure_texture",
    "rows_of",
    "spectrum_of",
    "table",
    "textured_lesions",
    "training_caption",
]

FIGURES = ("texture", "fine", "middle")
TEXTURE_PX = 1.5  # standard deviation of the Gaussian
BANDS_PX = (1.0, 2.0)
OCTAVES_PX = (32, 16, 8, 4, 2)  # wavelengths that bound the bands of the spectrum
WAVELENGTHS = tuple(f"{longest}-{shortest} px" for longest, shortest in pairwise(OCTAVES_PX))
TAPER_PX = 4  # over which the window of the spectrum rises from the mask's boundary
SPECTRUM_SIDE = 64  # pixels of the smallest transform, for bands of more than a few frequencies
LEAST_TEXTURE = 0.5  # grey levels of 255: a lesion with less is flat, and a ratio to it has no meaning
CAPTION_SIZE_PX = 128  # of the crop that a caption is measured on


@dataclass(frozen=True)
class TexturedLesion:
    """One lesion that was painted over.

    Attributes:
        dataset: name of its data set.
        group: of its image.
        painted: ratio of the painted to the real lesion, by figure ("texture", "fine", "middle").
        decoded: the same of the real lesion after the autoencoder alone.
        brightness: of the painted lesion minus the real one, grey levels of 255.
        psnr_db: of the autoencoder, in the square around the lesion at the model's size.
        spectrum: amplitude of the painted over that of the real lesion, by band of ``WAVELENGTHS``.
        seam: jump across the mask's boundary over that of the original.
    """

    dataset: str
    group: int
    painted: dict[str, float]
    decoded: dict[str, float]
    brightness: float
    psnr_db: float
    spectrum: dict[str, float]
    seam: float


@dataclass(frozen=True)
class Row:
    """The figures of a data set, see ``TexturedLesion``: medians with intervals, of ``psnr_db`` the mean."""

    dataset: str
    painted: dict[str, Interval]
    decoded: dict[str, Interval]
    brightness: Interval
    psnr_db: Interval
    spectrum: dict[str, Interval]
    seam: Interval


def bands_of(image: NDArray[np.generic], mask: NDArray[np.bool_]) -> dict[str, float]:
    """Standard deviation of the fine texture, and root mean squares of the fine and the middle band, inside a mask.

    Args:
        image: (C, H, W), any unit; the mean of its channels is measured.
        mask: (H, W), not empty.

    >>> image = np.indices((32, 32)).sum(0)[None] % 2 * 100.0  # a chessboard of single pixels
    >>> {name: round(value) for name, value in bands_of(image, np.ones((32, 32), bool)).items()}
    {'texture': 50, 'fine': 50, 'middle': 0}
    """
    from scipy.ndimage import gaussian_filter

    grey = image.astype(np.float64).mean(0)
    smooth, near, far = (gaussian_filter(grey, sigma) for sigma in (TEXTURE_PX, *BANDS_PX))
    return {
        "texture": float((grey - smooth)[mask].std()),
        "fine": float(np.sqrt(np.square(grey - near)[mask].mean())),
        "middle": float(np.sqrt(np.square(near - far)[mask].mean())),
    }


def spectrum_of(image: NDArray[np.generic], mask: NDArray[np.bool_]) -> dict[str, float]:
    """Root of the radially averaged power spectrum inside a mask by band of ``WAVELENGTHS``, in the unit of the image.

    The mean over the mask is removed, and the window falls to 0 at its boundary, so that the outline itself has no share in it.

    Args:
        image: (C, H, W); the mean of its channels is measured.
        mask: (H, W), not empty.

    >>> image = np.random.RandomState(0).normal(100, 20, (1, 64, 64))
    >>> noise = spectrum_of(image, np.ones((64, 64), bool))  # white: as much in each band
    >>> 15 < min(noise.values()) <= max(noise.values()) < 25
    True
    """
    from scipy.ndimage import distance_transform_edt

    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    window = np.minimum(distance_transform_edt(np.pad(mask[box], 1))[1:-1, 1:-1] / TAPER_PX, 1)
    grey = image.astype(np.float64).mean(0)[box]
    side = max(SPECTRUM_SIDE, *window.shape)
    centred = (grey - np.average(grey, weights=window)) * window
    power = np.abs(np.fft.fft2(centred, (side, side))) ** 2 / np.square(window).sum()
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    bands = ((frequency >= 1 / longest) & (frequency < 1 / shortest) for longest, shortest in pairwise(OCTAVES_PX))
    return {name: float(np.sqrt(power[band].mean())) for name, band in zip(WAVELENGTHS, bands, strict=True)}


def training_caption(one: MaskedImage, seed: int) -> str:
    """The caption that a lesion would have in training, with words measured on it; the finding alone where no modality is named."""
    if not one.modality:
        return one.finding
    square = roi_around(one.mask[0], max(one.mask.shape))
    grey = crop(one.image.float(), square, CAPTION_SIZE_PX).mean(0).numpy() / 255
    covered = crop(one.mask.float(), square, CAPTION_SIZE_PX)[0].numpy() > 0.5
    attributes = measure(grey, covered, float(one.mask_hw.mean())) if covered.any() and not covered.all() else None
    return caption(np.random.RandomState(seed), one.modality, one.anatomy, one.finding, attributes)


def textured_lesions(data: StudyData, n: int, seed: int = 0) -> list[MaskedImage]:
    """Up to ``n`` validation lesions of one data set, in random order, without those that are flat themselves."""
    lesions = lesions_of(data.images())
    order = np.random.RandomState(seed).permutation(len(lesions))
    textured = (lesions[i] for i in order if bands_of(lesions[i].image.numpy(), lesions[i].mask_hw)["texture"] >= LEAST_TEXTURE)
    return list(islice(textured, n))


@torch.no_grad()
def _round_trip(model: Inpainter, one: MaskedImage, options: InpaintOptions) -> tuple[Tensor, float]:
    """The image (C, H, W) with the square of the edit as the autoencoder shows it, and the autoencoder's PSNR in dB."""
    region, image = options.region, one.image.float()
    least_side = partial(options.soft_edge.least_side, pixel_mm=1.0)
    roi = roi_around(one.mask[0], model.size_px, region.context, least_side=least_side, least_context=region.least_context)
    square = resize(square_from(image / 127.5 - 1, roi), model.size_px, region.resample).expand(3, -1, -1)[None]
    decoded = model.decode(model.encode(square)).clamp(-1, 1)
    shown = decoded[0] if image.shape[0] == 3 else decoded[0].mean(0, keepdim=True)
    return paste(image, (shown + 1) * 127.5, roi, region.resample), psnr_db(decoded, square)


def _ratios(picture: NDArray[np.generic], one: MaskedImage) -> dict[str, float]:
    real, shown = bands_of(one.image.numpy(), one.mask_hw), bands_of(picture, one.mask_hw)
    return {name: shown[name] / real[name] for name in FIGURES}


def measure_texture(lesions: Sequence[MaskedImage], painter: Painter, options: InpaintOptions, dataset: str = "") -> list[TexturedLesion]:
    """Paint lesions over and compare them with what was there.

    Args:
        lesions: with texture, see ``textured_lesions``.
        painter: model, sampler and seed.
        options: of the transform, for the edit and for the autoencoder's square.
        dataset: name of the data set.
    """
    prompts = [training_caption(one, painter.seed + i) for i, one in enumerate(lesions)]
    model = painter.transform(options).inpainter_on(torch.device("cpu"))
    measured = []
    for one, painted in zip(lesions, painter.paint(lesions, prompts, options), strict=True):
        decoded, reached_db = _round_trip(model, one, options)
        difference = painted.image.float() - one.image.float()
        brightness = float(difference.mean(0).numpy()[one.mask_hw].mean())
        ratios = _ratios(painted.image.numpy(), one), _ratios(decoded.numpy(), one)
        original, result = one.image.numpy(), painted.image.numpy()
        real = spectrum_of(original, one.mask_hw)
        spectrum = {name: value / real[name] for name, value in spectrum_of(result, one.mask_hw).items()}
        jump = seam(original, result, one.mask.numpy()).to_original
        measured.append(TexturedLesion(dataset, one.group, *ratios, brightness, reached_db, spectrum, jump))
    return measured


def _interval(values: Iterable[float], groups: Sequence[int], statistic: Callable[[Any], Any] = np.median) -> Interval:
    column = np.array(list(values), np.float64)
    return interval(lambda picks: float(statistic(column[picks])), groups)


def rows_of(lesions: Sequence[TexturedLesion]) -> list[Row]:
    """One row per data set, in the order of the lesions."""
    rows = []
    for name in dict.fromkeys(lesion.dataset for lesion in lesions):
        members = [lesion for lesion in lesions if lesion.dataset == name]
        groups = [lesion.group for lesion in members]
        painted, decoded = (
            {figure: _interval([getattr(lesion, kind)[figure] for lesion in members], groups) for figure in FIGURES}
            for kind in ("painted", "decoded")
        )
        spectrum = {band: _interval([lesion.spectrum[band] for lesion in members], groups) for band in WAVELENGTHS}
        brightness, jump = (_interval([getattr(lesion, name) for lesion in members], groups) for name in ("brightness", "seam"))
        psnr_db = _interval([lesion.psnr_db for lesion in members], groups, np.mean)
        rows.append(Row(name, painted, decoded, brightness, psnr_db, spectrum, jump))
    return rows


def table(rows: Sequence[Row]) -> str:
    """One line per data set: texture with its interval, fine / middle band, of the painted lesions and of the autoencoder, and the rest.

    A second table has the spectrum by wavelength and the seam.
    """
    heads = "".join(f"{head:<20}{'fine/middle':<13}" for head in ("painted / real", "autoencoder / real"))
    lines = [f"{'data set':<28}{'n':>4}  {heads}{'brightness':>10}{'PSNR, dB':>10}"]
    for row in rows:
        cells = ""
        for figures in (row.painted, row.decoded):
            texture = figures["texture"]
            cells += _cell(texture)
            cells += f"{figures['fine'].value:.2f}/{figures['middle'].value:<8.2f}"
        brightness, psnr = row.brightness.value, row.psnr_db
        lines.append(f"{row.dataset or 'all':<28}{psnr.n:>4}  {cells}{brightness:>+10.1f}{psnr.value:>10.1f}")
    heads = "".join(f"{band:<20}" for band in WAVELENGTHS)
    lines += ["", f"{'spectrum, painted / real':<32}  {heads}seam / original"]
    for row in rows:
        cells = "".join(_cell(figure) for figure in (*row.spectrum.values(), row.seam))
        lines.append(f"{row.dataset or 'all':<28}{row.seam.n:>4}  {cells}".rstrip())
    return "\n".join(lines)


def _cell(figure: Interval) -> str:
    return f"{f'{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]':<20}"


def _options(options: argparse.Namespace) -> InpaintOptions:
    """The options of the edit that the command line names.

    Raises:
        StudyInputError: one is out of range.
    """
    try:
        return InpaintOptions(
            noise=Noise(gain=options.noise_gain, acquisition=options.acquisition_noise),
            region=Region(resample=options.resample, least_context=options.least_context),
            guidance_interval=options.guidance_interval and tuple(options.guidance_interval),
        )
    except ValueError as error:
        raise StudyInputError(str(error)) from error


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    edit, painter = _options(options), Painter.of(options)
    if options.n < 1:
        raise StudyInputError(f"--n must be 1 or more, got {options.n}")
    measured = []
    for name in data.datasets:
        lesions = textured_lesions(data.only(name), options.n, painter.seed)
        measured += measure_texture(lesions, painter, edit, name) if lesions else []
    if not measured:
        raise StudyInputError(f'this study needs labelled lesions in the "validation" list, and {data.file} shows none ({data.title})')
    rows = rows_of(measured)
    figures = {"rows": [asdict(row) for row in rows], "lesions": [asdict(lesion) for lesion in measured]}
    return f"{table(rows)}\n{painter}, {edit!r}", figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__)
    parser.add_argument("--n", type=int, default=16, help="lesions per data set at most; default %(default)s")
    parser.add_argument("--noise-gain", type=float, metavar="X", help="Noise(gain); default by the model")
    parser.add_argument("--acquisition-noise", action=argparse.BooleanOptionalAction, help="Noise(acquisition); default by the model")
    parser.add_argument("--resample", choices=RESAMPLINGS, default=Region().resample, help="Region(resample); default %(default)s")
    parser.add_argument("--least-context", type=float, default=Region().least_context, metavar="X", help="default %(default)s")
    parser.add_argument("--guidance-interval", nargs=2, type=float, metavar=("A", "B"), help="default by the model")
    return run_study(parser, _study, arguments, needs="labelled lesions")
