"""Faults of letter B, windows: padding counts as no intensity, and CT has a window of Hounsfield units, never of percentiles."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, pad_list_data_collate

from monai_diffaug import BatchLocalInpaint, DiffusionLocalInpaint, DiffusionLocalInpaintd, LatentValidate
from monai_diffaug.edit.options import RepaintSettings
from monai_diffaug.edit.request import Request, open_request
from monai_diffaug.geometry.window import Window, window_of
from monai_diffaug.training.datalist import Entry
from monai_diffaug.training.labelled_slices import slices_of
from monai_diffaug.training.read_entry import LabelledImage

PROMPT = "CT of abdomen, liver metastasis"


def body(*, padding: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft tissue of about 50 HU in air, and a mask in it; scanners write ``padding`` outside a circle."""
    rows, columns = np.indices((96, 96)) - 47.5
    radius = np.hypot(rows, columns)
    image = np.where(radius < 32, 50 + np.random.RandomState(0).normal(0, 12, radius.shape), -1000)
    if padding is not None:
        image[radius > 46] = padding
    mask = (np.hypot(rows - 4, columns + 6) < 10).astype(np.uint8)
    return torch.from_numpy(image.round().astype(np.int16))[None], torch.from_numpy(mask)[None]


@pytest.mark.parametrize("padding", [None, -3024])
def test_padding_outside_the_field_of_view_does_not_darken_a_lesion(padding) -> None:
    image, mask = body(padding=padding)
    edit = DiffusionLocalInpaint(num_inference_steps=4).apply(image, mask, PROMPT, seed=0)
    assert edit.record["applied"] and -60 < float(edit.image[0, mask[0] > 0].float().mean()) < 160


@pytest.mark.parametrize(
    ("prompt", "window"),
    [
        (PROMPT, (-160, 240)),
        ("CT of brain, ischaemic stroke", (0, 80)),
        ("CT of chest, lung nodule", (-1350, 150)),
        ("computed tomography of bone, fracture", (-500, 1300)),
        ("hepatic cyst", (-160, 240)),
        ("", (-160, 240)),
    ],
)
def test_ct_has_the_window_of_its_anatomy_in_edit_and_validation(prompt, window) -> None:
    image, mask = body()
    stack = open_request(Request(image, mask, prompt or "x", None, None, 0), RepaintSettings(), 1)
    assert stack.window == window_of(image, prompt=prompt) == Window(*window)
    judged = []
    LatentValidate(lambda crops: judged.append(crops) or crops[:, :1] * 0)(image, mask, prompt=prompt)
    level = (2 * (50 - window[0]) / (window[1] - window[0])) - 1
    assert float(judged[0][0, :, 64, 64].mean()) == pytest.approx(max(-1, min(1, level)), abs=0.5)


def test_training_cuts_ct_in_the_same_window() -> None:
    image, mask = body()
    entry = Entry(__file__, __file__, {(): "liver metastasis"}, "ct", "abdomen")
    (chosen,) = slices_of(LabelledImage(entry, image, mask.long(), None))
    assert chosen.window == Window(-160, 240)


@pytest.mark.parametrize("prompt", ["MRI of brain, glioma", "ultrasound of liver, cyst"])
def test_other_modalities_and_scaled_ct_keep_percentiles(prompt) -> None:
    image = torch.linspace(-1200, 1200, 96 * 96).reshape(1, 96, 96)
    assert window_of(image, prompt=prompt).low == pytest.approx(-1188, abs=1)
    assert window_of(image / 2400 + 0.5, prompt=PROMPT).high == pytest.approx(0.995, abs=1e-3)


def test_the_window_does_not_depend_on_the_batch_mates() -> None:
    rng = np.random.RandomState(0)
    small, large = (MetaTensor(rng.normal(300, 40, (1, side, side)).astype(np.float32)) for side in (40, 64))
    alone = window_of(small.as_tensor())
    batch = pad_list_data_collate([{"image": small}, {"image": large}])["image"]
    assert tuple(batch.shape) == (2, 1, 64, 64) and window_of(batch[0].as_tensor()) == alone


def test_an_edit_in_a_padded_batch_is_that_of_the_image_alone(random_inpainter) -> None:
    rng = np.random.RandomState(0)
    images = [torch.from_numpy(rng.normal(300, 40, (1, side, side)).astype(np.float32)) for side in (128, 160)]
    masks = [torch.zeros_like(image) for image in images]
    for mask in masks:
        mask[:, 56:66, 56:66] = 1
    edits = {}
    for name, mates in (("alone", [0]), ("padded", [0, 1])):
        batch = pad_list_data_collate([{"image": images[i], "mask": masks[i]} for i in mates])
        transform = DiffusionLocalInpaintd("image", model=random_inpainter, num_inference_steps=1)
        edited = BatchLocalInpaint(transform, seed=3)({**batch, "prompt": ["MRI of brain, glioma"] * len(mates)})
        start = (edited["image"].shape[-1] - 128) // 2  # MONAI pads both ends
        edits[name] = edited["image"][0, :, start : start + 128, start : start + 128]
    inside = masks[0] > 0
    assert torch.allclose(edits["alone"][inside], edits["padded"][inside], atol=2e-3)
