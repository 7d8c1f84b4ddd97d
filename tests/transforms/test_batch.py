from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from torch import Tensor

from monai_diffaug.edit.options import ControlNet, InpaintOptions
from monai_diffaug.transforms.batch import BatchLocalInpaint, PrepareBatchInpaint
from monai_diffaug.transforms.local_inpaint import Edit
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd

PROMPT = "ultrasound of breast, benign mass"


def sample(index: int, kind: type = Tensor, size: tuple[int, ...] = (40, 44)) -> dict[str, object]:
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(index)) * 100
    mask = torch.zeros(1, *size)
    mask[:, 10 + index : 20 + index, 12:24] = 1
    if kind is MetaTensor:
        affine = torch.diag(torch.tensor([1.0 + index, 2.0, 1.0, 1.0]))
        image, mask = MetaTensor(image, affine=affine), MetaTensor(mask, affine=affine)
    return {"image": image, "mask": mask, "label": torch.zeros(1, *size, dtype=torch.uint8), "prompt": PROMPT, "id": f"case-{index}"}


@pytest.fixture
def inpaint(random_inpainter: str):
    def build(**options: object) -> DiffusionLocalInpaintd:
        return DiffusionLocalInpaintd("image", **{"label_key": "label", "model": random_inpainter, "num_inference_steps": 2, **options})

    return build


@pytest.fixture
def model_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from diffusers import UNet2DConditionModel

    calls: list[int] = []
    forward = UNet2DConditionModel.forward

    def counted(self: Any, latents: Tensor, *args: Any, **options: Any) -> Any:
        calls.append(len(latents))
        return forward(self, latents, *args, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    return calls


def test_a_batch_costs_one_model_call_per_step(inpaint, model_calls) -> None:
    BatchLocalInpaint(inpaint(guidance_scale=1.0), seed=1)(list_data_collate([sample(i) for i in range(5)]))
    assert model_calls == [5, 5]


def test_each_sample_is_edited_as_the_transform_would_with_its_seed(inpaint) -> None:
    samples = [sample(i) for i in range(3)]
    transform = inpaint()
    edited = BatchLocalInpaint(transform, seed=1)(list_data_collate(samples))
    for i, each in enumerate(samples):
        alone = transform.edit(each, seed=int(edited["image_diffaug"]["seed"][i]))
        assert torch.allclose(edited["image"][i], alone["image"], atol=1e-3) and torch.equal(edited["label"][i], alone["label"])
        assert not torch.equal(edited["image"][i], each["image"])


@pytest.mark.parametrize("kind", [Tensor, MetaTensor])
def test_a_mixed_batch_keeps_what_was_not_drawn_and_decollates(inpaint, kind) -> None:
    samples = [sample(i, kind) for i in range(6)]
    batch = list_data_collate(samples)
    edited = BatchLocalInpaint(inpaint(prob=0.5), seed=3)(batch)
    applied = edited["image_diffaug"]["applied"]
    assert applied.dtype == torch.bool and 0 < int(applied.sum()) < 6
    for before, after in zip(samples, decollate_batch(edited), strict=True):
        assert type(after["image"]) is type(before["image"])
        assert torch.equal(after["image"], before["image"]) is not after["image_diffaug"]["applied"]
        assert bool(after["label"].any()) is after["image_diffaug"]["applied"]
        assert after["id"] == before["id"] and isinstance(after["image_diffaug"]["reason"], str)
        if kind is MetaTensor:
            assert torch.equal(after["image"].affine, before["image"].affine)


def test_the_record_has_the_form_that_collate_gives_it(inpaint) -> None:
    samples = [sample(i) for i in range(3)]
    expected = list_data_collate([inpaint().edit(each, seed=i, triggered=i > 0) for i, each in enumerate(samples)])["image_diffaug"]
    got = BatchLocalInpaint(inpaint(prob=0.5), seed=3)(list_data_collate(samples))["image_diffaug"]
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert type(got[name]) is type(value)
        if isinstance(value, Tensor):
            assert got[name].dtype == value.dtype and got[name].shape == value.shape


def test_the_batch_is_not_written_to(inpaint) -> None:
    batch = list_data_collate([sample(i) for i in range(2)])
    before = {key: value.clone() for key, value in batch.items() if isinstance(value, Tensor)}
    BatchLocalInpaint(inpaint(), seed=1)(batch)
    assert batch.keys() == list_data_collate([sample(0)]).keys()
    assert all(torch.equal(batch[key], value) for key, value in before.items())


def test_the_batch_size_does_not_matter_and_the_seed_does(inpaint) -> None:
    samples = [sample(i) for i in range(8)]

    def run(size: int, seed: int) -> Tensor:
        augment = BatchLocalInpaint(inpaint(prob=0.7), seed=seed)
        return torch.cat([augment(list_data_collate(samples[i : i + size]))["image"] for i in range(0, 8, size)])

    one = run(1, 5)
    assert torch.equal(run(1, 5), one)
    assert torch.allclose(run(2, 5), one, atol=1e-3) and torch.allclose(run(8, 5), one, atol=1e-3)
    assert not torch.allclose(run(8, 6), one, atol=1e-3)


def test_epochs_differ(inpaint) -> None:
    augment, batch = BatchLocalInpaint(inpaint(), seed=1), list_data_collate([sample(0)])
    assert not torch.equal(augment(batch)["image"], augment(batch)["image"])


def test_volumes_are_cut_in_the_plane_of_their_affine(inpaint) -> None:
    affine = torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # stored A, S, R
    volumes = [sample(i, size=(30, 5, 34)) for i in range(2)]
    for each in volumes:
        each["image"], mask = MetaTensor(each["image"], affine=affine), torch.zeros(1, 30, 5, 34)
        mask[:, 8:20, 1:3, 8:20] = 1
        each["mask"] = MetaTensor(mask, affine=affine)
    edited = BatchLocalInpaint(inpaint(), seed=1)(list_data_collate(volumes))
    assert edited["image_diffaug"]["n_slices"].tolist() == [2, 2]


def test_an_empty_mask_and_two_keys_are_told_in_the_records(random_inpainter) -> None:
    transform = DiffusionLocalInpaintd(("a", "b"), label_key="label", model=random_inpainter, num_inference_steps=1)
    samples = []
    for i in range(2):
        each = sample(i)
        samples.append({**each, "a": each["image"], "b": each["image"] + 1, "mask": each["mask"] * i})
    edited = BatchLocalInpaint(transform, seed=1)(list_data_collate(samples))
    for key in ("a_diffaug", "b_diffaug"):
        assert edited[key]["applied"].tolist() == [False, True] and edited[key]["reason"][0] == "empty mask"
    assert edited["label"].flatten(1).any(1).tolist() == [False, True]


def test_prompt_mixes_reach_the_model_as_without_a_batch(inpaint) -> None:
    mix = [(0.7, "ultrasound of breast, benign mass"), (0.3, "ultrasound of breast, malignant mass")]
    samples = [{**sample(i), "prompt": mix} for i in range(3)]
    transform = inpaint()
    edited = BatchLocalInpaint(transform, seed=1)(list_data_collate(samples))
    for i, each in enumerate(samples):
        alone = transform.edit(each, seed=int(edited["image_diffaug"]["seed"][i]))
        assert torch.allclose(edited["image"][i], alone["image"], atol=1e-3)
        assert edited["image_diffaug"]["prompt"][i] == alone["image_diffaug"]["prompt"]


def test_control_images_are_handed_on(inpaint, monkeypatch) -> None:
    transform = inpaint(options=InpaintOptions(control=ControlNet(key="edges")))
    samples = [{**sample(i), "edges": torch.full((1, 40, 44), float(i))} for i in range(2)]
    shown: list[Tensor] = []

    def untouched(images, masks, prompts, labels, controls, *, seeds):
        shown.extend(controls)
        return [Edit(image, None, transform.inpaint.untouched(PROMPT, "shown")) for image in images]

    monkeypatch.setattr(transform.inpaint, "apply_batch", untouched)
    BatchLocalInpaint(transform, seed=1)(list_data_collate(samples))
    assert [float(control.mean()) for control in shown] == [0.0, 1.0]


def test_faults_of_the_batch_are_named(inpaint) -> None:
    batch = list_data_collate([sample(0)])
    with pytest.raises(KeyError, match="no 'mask'"):
        BatchLocalInpaint(inpaint(), seed=1)({key: value for key, value in batch.items() if key != "mask"})
    unlabelled = {key: value for key, value in batch.items() if key != "label"}
    with pytest.raises(KeyError, match="no 'label'"):
        BatchLocalInpaint(inpaint(), seed=1)(unlabelled)
    assert "label" not in BatchLocalInpaint(inpaint(allow_missing_keys=True), seed=1)(unlabelled)
    with pytest.raises(TypeError, match=r"\(1, 40, 44\)"):
        BatchLocalInpaint(inpaint(), seed=1)(sample(0))
    with pytest.raises(TypeError, match="'prompt' must hold one entry for each of the 1 samples"):
        BatchLocalInpaint(inpaint(), seed=1)({**batch, "prompt": PROMPT})
    with pytest.raises(ValueError, match="keep_original"):
        BatchLocalInpaint(inpaint(keep_original=True), seed=1)


def test_missing_images_are_skipped_when_allowed(inpaint) -> None:
    batch = {"other": torch.zeros(2, 1, 4, 4)}
    assert BatchLocalInpaint(inpaint(allow_missing_keys=True), seed=1)(batch) == batch


def test_prepare_batch_feeds_image_and_label_and_records_into_the_engines_batch(inpaint) -> None:
    batch = list_data_collate([sample(i, MetaTensor) for i in range(2)])
    image, label = PrepareBatchInpaint(BatchLocalInpaint(inpaint(), seed=1))(batch, "cpu", False, dtype=torch.float64)
    assert image.dtype == torch.float64 and not torch.equal(image, batch["image"].double()) and bool(label.any())
    assert batch["image_diffaug"]["applied"].tolist() == [True, True] and not bool(batch["label"].any())
    assert [each["image_diffaug"]["prompt"] for each in decollate_batch(batch)] == [PROMPT, PROMPT]


def test_a_supervised_trainer_trains_on_it(inpaint, model_calls) -> None:
    from monai.data import DataLoader, Dataset
    from monai.engines import SupervisedTrainer

    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    before = network.weight.detach().clone()
    applied = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=DataLoader(Dataset([sample(i) for i in range(4)]), batch_size=4),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 1e-6),
        loss_function=lambda prediction, label: ((prediction - label) ** 2).mean(),
        prepare_batch=PrepareBatchInpaint(BatchLocalInpaint(inpaint(guidance_scale=1.0), seed=1)),
        postprocessing=lambda item: applied.append(item["image_diffaug"]["applied"]) or item,
    )
    trainer.run()
    assert model_calls == [4, 4] * 2 and applied == [True] * 8
    assert not torch.equal(network.weight, before)
