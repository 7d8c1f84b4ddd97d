from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from monai_diffaug.commands.cli import main as command
from monai_diffaug.edit.options import InpaintOptions, Noise, Region
from monai_diffaug.studies.masked_images import MaskedImage
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.study_images import StudyData, StudyInputError
from monai_diffaug.studies.texture import (
    FIGURES,
    WAVELENGTHS,
    TexturedLesion,
    bands_of,
    main,
    measure_texture,
    rows_of,
    spectrum_of,
    table,
    textured_lesions,
    training_caption,
)

FAST = Painter(num_inference_steps=2, guidance_scale=1.0)


def test_blurred_noise_has_less_of_each_band_and_moved_noise_as_much() -> None:
    image, mask = np.random.RandomState(0).normal(100, 20, (1, 96, 96)), np.zeros((96, 96), bool)
    mask[20:76, 20:76] = True
    real, moved = bands_of(image, mask), bands_of(np.roll(image, 9, axis=2), mask)
    blurred = bands_of(gaussian_filter(image, (0, 1, 1)), mask)
    for name in FIGURES:
        assert moved[name] / real[name] == pytest.approx(1, abs=0.06)
    assert blurred["fine"] / real["fine"] < 0.2 < blurred["middle"] / real["middle"] < 0.8


def test_the_spectrum_tells_at_which_wavelengths_a_lesion_is_flat_and_ignores_outline_and_surround() -> None:
    noise, disc = np.random.RandomState(0).normal(0, 20, (1, 96, 96)), np.hypot(*(np.indices((96, 96)) - 48)) < 30
    real, smooth = (spectrum_of(100 + part, disc) for part in (noise, gaussian_filter(noise, (0, 1, 1))))
    ratios = [smooth[band] / real[band] for band in WAVELENGTHS]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] > 0.8 and ratios[-1] < 0.2
    other = np.where(disc, 100 + noise, 255)
    assert spectrum_of(other + 50, disc) == pytest.approx(real)


def test_a_brighter_lesion_has_the_texture_that_it_had() -> None:
    image = np.random.RandomState(0).normal(100, 20, (3, 48, 48))
    mask = np.ones((48, 48), bool)
    assert bands_of(image + 40, mask) == pytest.approx(bands_of(image, mask))


@pytest.fixture(scope="module")
def lesions(packed) -> list[MaskedImage]:
    return textured_lesions(StudyData.open(packed("breast_ultrasound")), 3)


def test_lesions_are_drawn_by_the_seed_and_flat_ones_are_left_out(packed, lesions) -> None:
    data = StudyData.open(packed("breast_ultrasound"))
    again, other = textured_lesions(data, 3), textured_lesions(data, 3, seed=1)
    assert [one.index for one in again] == [one.index for one in lesions] != [one.index for one in other]
    assert all(bands_of(one.image.numpy(), one.mask_hw)["texture"] >= 0.5 for one in lesions)


def test_the_caption_names_modality_anatomy_and_finding(lesions) -> None:
    texts = [training_caption(lesions[0], seed) for seed in range(8)]
    assert all(part in text for text in texts for part in ("ultrasound", "breast", lesions[0].finding))
    assert len(set(texts)) > 1 and training_caption(replace(lesions[0], modality=""), 0) == lesions[0].finding


def test_the_options_reach_the_edit_and_the_square_of_the_autoencoder(lesions) -> None:
    options = [
        InpaintOptions(region=Region(resample="bilinear", least_context=None)),
        InpaintOptions(noise=Noise(gain=0.3), region=Region(resample="bicubic", least_context=1.5)),
    ]
    plain, sharper = (measure_texture(lesions, FAST, each, "breast") for each in options)
    for before, after in zip(plain, sharper, strict=True):
        assert before.dataset == "breast" and 15 < before.psnr_db < 60
        assert 0 < before.decoded["fine"] <= after.decoded["fine"] < 1.2  # equal where the square has the model's size
    assert any(before.decoded["fine"] < after.decoded["fine"] for before, after in zip(plain, sharper, strict=True))
    assert np.median([one.painted["fine"] for one in sharper]) > np.median([one.painted["fine"] for one in plain])


def test_rows_are_medians_over_lesions_with_the_interval_over_groups_and_the_mean_psnr() -> None:
    def lesion(group: int, ratio: float, name: str = "a") -> TexturedLesion:
        return TexturedLesion(
            name,
            group,
            dict.fromkeys(FIGURES, ratio),
            dict.fromkeys(FIGURES, 0.5),
            -ratio,
            30 + ratio,
            dict.fromkeys(WAVELENGTHS, ratio),
            1 + ratio,
        )

    rows = rows_of([lesion(0, 0.2), lesion(1, 0.4), lesion(2, 0.9), lesion(3, 7.0, "")])
    first = rows[0]
    assert (first.dataset, first.painted["fine"].value, first.brightness.value) == ("a", 0.4, -0.4)
    assert first.painted["texture"].low == 0.2 and first.painted["texture"].high == 0.9 and first.psnr_db.value == pytest.approx(30.5)
    lines = table(rows).splitlines()
    assert "0.40 [0.20, 0.90]" in lines[1] and lines[1].startswith("a ") and lines[2].startswith("all ") and len(lines) == 7
    assert first.spectrum["4-2 px"].value == 0.4 and first.seam.value == pytest.approx(1.4)
    assert all(band in lines[4] for band in WAVELENGTHS) and lines[5].startswith("a ") and lines[5].endswith("1.40 [1.20, 1.90]")


def test_the_command_runs_on_the_datalist_of_a_user_and_writes_its_figures(user_datalist: Path, tmp_path: Path, capsys) -> None:
    sampler = ["--n", "2", "--num-inference-steps", "1", "--guidance-scale", "1", "--noise-gain", "0.1", "--resample", "bilinear"]
    assert main(["--data", str(user_datalist), *sampler, "--out", str(tmp_path / "texture.json")]) == 0
    printed = capsys.readouterr().out
    assert (
        "autoencoder / real" in printed
        and "Noise(gain=0.1)" in printed
        and "resample='bilinear'" in printed
        and "seam / original" in printed
    )
    assert '"psnr_db"' in (tmp_path / "texture.json").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--noise-gain", "2"), "noise gain must be"), (("--least-context", "0.5"), "least_context must be"), (("--n", "0"), "--n must be 1")],
)
def test_an_option_out_of_range_is_refused(user_datalist: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(StudyInputError, match=message):
        main(["--data", str(user_datalist), *options])


def test_without_data_it_ends_with_one_line_and_exit_code_2(capsys) -> None:
    assert command(["evaluate", "texture"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "evaluate texture needs --data DATALIST.json" in line


def test_images_without_lesions_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "data.json").write_text(
        '{"modality": "ct", "anatomy": "liver", "validation": [{"image": "a.png", "finding": "normal tissue"}]}'
    )
    with pytest.raises(StudyInputError, match="needs labelled lesions"):
        main(["--data", str(tmp_path / "data.json")])


def test_the_square_outside_the_mask_is_not_measured(lesions) -> None:
    one = lesions[0]
    other = one.image.numpy().copy()
    far = torch.nn.functional.max_pool2d(one.mask[None].float(), 33, 1, 16)[0, 0].numpy() == 0  # beyond the reach of the Gaussians
    other[:, far] = 0
    assert bands_of(other, one.mask_hw) == pytest.approx(bands_of(one.image.numpy(), one.mask_hw))
