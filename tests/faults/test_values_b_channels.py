"""Co-registered channels: no window that erases the narrow one, no channel that is changed unseen."""

import pytest
import torch

from monai_diffaug import Channels, DiffusionLocalInpaintd, InpaintOptions

TOPS = (4000.0, 600.0, 3.0, 90.0, 1.0, 7000.0, 30.0, 2.0)


def sample(*tops):
    ramp = torch.linspace(0, 1, 64 * 64).reshape(64, 64)
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[:, 20:44, 20:44] = 1
    return {"image": torch.stack([top * ramp for top in tops]), "mask": mask, "prompt": "MRI of brain, glioma"}


@pytest.fixture
def edit(random_inpainter):
    def run(data, channels=None, **options):
        group = InpaintOptions() if channels is None else InpaintOptions(channels=channels)
        transform = DiffusionLocalInpaintd("image", num_inference_steps=2, model=random_inpainter, options=group, **options)
        result = transform.edit(data, seed=3)
        assert result["image_diffaug"]["applied"]
        return result["image"]

    return run


@pytest.mark.parametrize("count", range(2, 9))
def test_each_channel_is_repainted_as_it_would_be_alone_with_the_same_noise(edit, count) -> None:
    data = sample(*TOPS[:count]) if count != 3 else sample(*TOPS[:3])
    result = edit(data)
    for i in range(count):
        alone = edit({**data, "image": data["image"][i : i + 1]})
        assert torch.allclose(result[i : i + 1], alone, atol=1e-4 * TOPS[i]) and not torch.equal(result[i], data["image"][i])


def test_the_edits_of_channels_that_differ_in_their_unit_alone_are_the_same(edit) -> None:
    result = edit(sample(4000.0, 3.0))
    assert torch.allclose(result[0] / 4000, result[1] / 3, atol=1e-4)


@pytest.mark.parametrize("tops", [(255.0, 120.0, 30.0), (1.0, 1.0, 0.0)])
def test_a_colour_picture_is_one_picture(edit, tops) -> None:
    result = edit(sample(*tops))
    grey_one_by_one = edit(sample(*tops), Channels(separate=True))
    assert not torch.allclose(result, grey_one_by_one, atol=1e-2)


def test_three_channels_of_uint8_stay_colours_whatever_their_ranges(edit) -> None:
    data = sample(255.0, 120.0, 1.0)
    data["image"] = data["image"].round().to(torch.uint8)
    floats = edit({**data, "image": data["image"].float()}, window=(0, 255))
    assert torch.allclose(edit(data).float(), floats, atol=0.51)


def test_a_window_that_the_user_gives_holds_for_three_channels_as_one_picture(edit) -> None:
    assert not torch.equal(edit(sample(4000.0, 600.0, 3.0), window=(0, 4000)), edit(sample(4000.0, 600.0, 3.0)))


def test_channels_that_are_left_out_stay_bit_identical(edit) -> None:
    data = sample(*TOPS[:4])
    result = edit(data, Channels(only=(3, 1)))
    assert torch.equal(result[[0, 2]], data["image"][[0, 2]])
    both = edit(data)
    assert torch.equal(result[[1, 3]], both[[1, 3]])


def test_each_channel_gets_its_own_prompt_and_window(edit) -> None:
    data = sample(1.0, 1.0)
    plain, worded = edit(data), edit(data, Channels(prompts=("{prompt}", "CT of abdomen, {prompt}, round")))
    assert torch.equal(plain[0], worded[0]) and not torch.allclose(plain[1], worded[1])
    named = edit({**data, "prompt": "CT of abdomen, MRI of brain, glioma, round"})
    assert torch.allclose(worded[1], named[1], atol=1e-5)
    narrow = edit(data, Channels(windows=((0, 1), (0, 0.5))))
    assert float(narrow[1][data["mask"][0] > 0].max()) <= 0.5 + 1e-6 < float(plain[1][data["mask"][0] > 0].max())


def test_a_contrast_that_was_not_recorded_stays_constant(edit) -> None:
    data = sample(4000.0, 0.0, 30.0, 2.0)
    result = edit(data)
    assert not result[1].any() and all(not torch.equal(result[k], data["image"][k]) for k in (0, 2, 3))
    assert torch.equal(result[[0, 2, 3]], edit({**data, "image": data["image"][[0, 2, 3]]}, Channels(separate=True)))


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        (Channels(only=(0, 4)), "only names channel 4, and the image has 4"),
        (Channels(prompts=("a", "b")), "prompts needs one entry for each of the 4 repainted channels, got 2"),
        (Channels(windows=((0, 1),)), "windows needs one entry for each of the 4 repainted channels, got 1"),
    ],
)
def test_options_that_do_not_fit_the_image_are_refused(edit, channels, words) -> None:
    with pytest.raises(ValueError, match=words):
        edit(sample(*TOPS[:4]), channels)


@pytest.mark.parametrize(
    "options", [{"only": ()}, {"only": (1, 1)}, {"only": (-1,)}, {"only": (0, 1), "prompts": ("a",)}, {"prompts": "a"}]
)
def test_options_that_contradict_themselves_are_refused(options) -> None:
    with pytest.raises(ValueError, match="only must name|prompts needs|prompts must be"):
        Channels(**options)


def test_nine_channels_are_refused_with_the_way_out(edit) -> None:
    with pytest.raises(ValueError, match=r"C 1 to 8, got shape \(9, 64, 64\).*SplitDimd"):
        edit(sample(*[1.0] * 9))


def test_a_volume_of_four_contrasts_shares_its_noise_slice_by_slice(edit) -> None:
    volume = torch.rand(1, 40, 40, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 40, 40, 6)
    mask[:, 12:26, 12:26, 2:5] = 1
    data = {"image": torch.cat([volume, 5 * volume, 900 * volume, 1 - volume]), "mask": mask, "prompt": "MRI of brain, glioma"}
    result = edit(data)
    assert torch.allclose(result[0], result[1] / 5, atol=1e-4) and torch.allclose(result[0], result[2] / 900, atol=1e-4)
    assert torch.equal(result[..., :2], data["image"][..., :2])
