"""Time that augmentation adds to a training step, if each repainted batch is used once or ten times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.data import Dataset
from monai.losses import DiceCELoss
from monai.networks.nets import UNet

from monai_diffaug.data.thread_loader import RaisingThreadDataLoader
from monai_diffaug.edit.options import InpaintOptions, SoftEdge
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.studies.speed.time_and_memory import interleaved, median_interval, medians
from monai_diffaug.studies.speed.timed_edits import GREY, Amount, EditSettings, make_volume
from monai_diffaug.studies.speed.timed_models import embedded
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd

__all__ = ["measure_training_step"]

REPEATS = (1, 10)
SIZE_PX, BATCH_SIZE = 128, 4
WIDTHS = (16, 32, 64, 128, 256)


def measure_training_step(device: torch.device, amount: Amount) -> list[dict[str, Any]]:
    """A row per number of repeats: seconds per step with and without augmentation, and the overhead.

    A MONAI UNet is trained on slices of 128 px, each of which is repainted in its region of interest.
    """
    model, settings = embedded(device), EditSettings(amount.steps)
    return [_row(model, settings, repeats, amount.rounds) for repeats in REPEATS]


def _row(model: Inpainter, settings: EditSettings, repeats: int, rounds: int) -> dict[str, Any]:
    edit = DiffusionLocalInpaintd(
        "image",
        label_key="label",
        model=model,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        window=GREY,
        options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=0.0)),
    )
    edit.set_random_state(settings.seed)
    arms = {"with": _epoch(model.device, settings, repeats, edit), "without": _epoch(model.device, settings, repeats, None)}
    seconds = {name: [value / repeats for value in values] for name, values in interleaved(arms, rounds, model.device).items()}
    return {
        "repeats": repeats,
        "size_px": SIZE_PX,
        "batch_size": BATCH_SIZE,
        "sampler_steps": settings.steps,
        "seconds_per_step": medians(seconds),
        "overhead": median_interval([a / b - 1 for a, b in zip(seconds["with"], seconds["without"], strict=True)]),
    }


def _epoch(device: torch.device, settings: EditSettings, repeats: int, edit: DiffusionLocalInpaintd | None) -> Callable[[], None]:
    """One batch, augmented or not, and one training step per repeat."""
    volume = make_volume(SIZE_PX, BATCH_SIZE)
    samples = [
        {"image": image, "mask": mask, "label": mask, "prompt": settings.prompt}
        for image, mask in zip(volume.slices, volume.masks, strict=True)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=WIDTHS, strides=(2,) * (len(WIDTHS) - 1), num_res_units=2)
    network.to(device)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    loader = RaisingThreadDataLoader(Dataset(samples, edit), batch_size=BATCH_SIZE, num_workers=0, repeats=repeats)

    def run() -> None:
        for batch in loader:
            optimiser.zero_grad()
            loss_of(network(batch["image"].to(device) / GREY[1]), batch["label"].to(device)).backward()
            optimiser.step()

    return run
