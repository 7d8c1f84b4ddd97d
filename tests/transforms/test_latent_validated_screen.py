"""``LatentValidated(screen=...)``: refused candidates are not decoded, accepted ones are what they are without a screen."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from monai_diffaug.data.transform_hash import transform_hashing
from monai_diffaug.edit.options import InpaintOptions, Noise, Run, SoftEdge
from monai_diffaug.edit.validation_options import Screen, Validator
from monai_diffaug.errors import DroppedSampleError
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.latent_screen import LatentScreen
from monai_diffaug.models.lean_unet import LeanUnet
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd

PROMPT = "ultrasound of breast, malignant mass"


def anything(images: Tensor) -> Tensor:
    return torch.ones_like(images[:, :1])


def nothing(images: Tensor) -> Tensor:
    return torch.zeros_like(images[:, :1])


class Scripted:
    """A screen's network that says "everywhere" or "nowhere" in turn; Dice of "everywhere" is that of the mask with the whole crop."""

    def __init__(self, *passes: bool) -> None:
        self.passes, self.calls = passes, 0

    def __call__(self, latents: Tensor) -> Tensor:
        self.calls += 1
        return torch.full_like(latents[:, :1], 9.0 if self.passes[(self.calls - 1) % len(self.passes)] else -9.0)


HARD, INVERTED = InpaintOptions(soft_edge=SoftEdge(0)), InpaintOptions(noise=Noise(source="inverted"))


class Shrinking:
    """Finds less and less: the first of several refused candidates is the best."""

    def __init__(self, *rows: int) -> None:
        self.rows = list(rows)

    def __call__(self, latents: Tensor) -> Tensor:
        answer = torch.full_like(latents[:, :1], -9.0)
        answer[..., 6 : 6 + self.rows.pop(0), 6:10] = 9.0
        return answer


def lenient(segmenter: Callable[[Tensor], Tensor] = anything, min_dice: float = 0.0) -> LatentValidate:
    return LatentValidate(segmenter, min_dice, options=Validator(min_coverage=0.0, max_false_positive=1e9, min_change=0.0))


def sample() -> dict[str, Any]:
    image = torch.rand(1, 70, 90, generator=torch.Generator().manual_seed(0)) * 100 + 20
    mask = torch.zeros(1, 70, 90)
    mask[:, 30:46, 40:56] = 1
    return {"image": image, "mask": mask, "label": torch.zeros(1, 70, 90, dtype=torch.uint8), "prompt": PROMPT}


@pytest.fixture
def build(random_inpainter: str) -> Callable[..., LatentValidated]:
    def made(screen: Any = None, least: float = 0.1, after: float = 0.25, **options: Any) -> LatentValidated:
        inpaint = options.pop("inpaint", None) or DiffusionLocalInpaintd(
            "image", label_key="label", model=random_inpainter, num_inference_steps=1
        )
        named = {"label_key": "label", "model": lenient(), "on_reject": "retry", **options}
        judge = None if screen is None else Screen(screen, least, after)
        return LatentValidated("image", inpaint=inpaint, screen=judge, **named).set_random_state(3)

    return made


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    decode = Inpainter.decode
    sizes: list[int] = []
    monkeypatch.setattr(Inpainter, "decode", lambda self, z: (sizes.append(len(z)), decode(self, z))[1])
    return sizes


def test_what_the_screen_refuses_is_never_decoded_and_the_sample_stays(build, decoded) -> None:
    data = sample()
    transform = build(Scripted(False))
    result = transform(data)
    assert decoded == []
    assert result["image"] is data["image"] and result["label"] is data["label"] and result["mask"] is data["mask"]
    record = result["image_diffaug"]
    assert not record["applied"] and not record["accepted"] and record["tries"] == 3 and record["score"] == 0.0
    assert record["n_slices"] == 1 and record["prompt"] == PROMPT and "refused before decoding" in record["reason"]
    assert transform.statistics == {"accepted": 0, "rejected": 1, "retried": 2, "screened": 3}


def test_candidates_that_pass_are_bit_identical_to_those_without_a_screen(build, decoded) -> None:
    plain, screened = build(), build(Scripted(True))
    without, with_screen = plain(sample()), screened(sample())
    assert decoded == [1, 1]
    assert set(without) == set(with_screen) and torch.equal(without["image"], with_screen["image"])
    assert torch.equal(without["label"], with_screen["label"]) and without["image_diffaug"] == with_screen["image_diffaug"]
    assert screened.statistics == {"accepted": 1, "rejected": 0, "retried": 0, "screened": 0} and "screened" not in plain.statistics


def test_a_refused_candidate_counts_as_a_try_and_the_next_has_the_seed_of_the_second(build, decoded) -> None:
    transform = build(Scripted(False, True))
    result = transform(sample())
    assert decoded == [1] and transform.statistics == {"accepted": 1, "rejected": 0, "retried": 1, "screened": 1}
    assert result["image_diffaug"]["accepted"] and result["image_diffaug"]["tries"] == 2
    second = deepcopy(transform.inpaint).set_random_state(seed=transform.seeds[1])(sample())
    assert torch.equal(result["image"], second["image"]) and result["image_diffaug"]["seed"] == second["image_diffaug"]["seed"]


@pytest.mark.parametrize(("after", "evaluations"), [(0.25, 1), (0.5, 2), (0.7, 3), (1.0, 4)])
def test_what_is_refused_early_is_spared_the_other_steps(
    random_inpainter, build, decoded, monkeypatch, after: float, evaluations: int
) -> None:
    evaluate, calls = LeanUnet.__call__, []
    monkeypatch.setattr(LeanUnet, "__call__", lambda self, z, t, c: (calls.append(int(t)), evaluate(self, z, t, c))[1])
    inpaint = DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=4)
    build(Scripted(False), inpaint=inpaint, on_reject="original", after=after)(sample())
    assert len(calls) == evaluations and decoded == []


@pytest.mark.parametrize("after", [0.25, 0.5, 1.0])
def test_a_look_changes_nothing_in_a_run_that_goes_on(random_inpainter, build, after: float) -> None:
    for options in ({}, {"options": HARD}, {"options": INVERTED, "guidance_scale": 1.0}):
        inpaint = DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=4, **options)
        screen = Scripted(True)
        without, with_screen = (build(judge, inpaint=inpaint, after=after)(sample()) for judge in (None, screen))
        assert screen.calls == 1 and torch.equal(without["image"], with_screen["image"])
        assert without["image_diffaug"] == with_screen["image_diffaug"]


def test_a_candidate_refused_early_is_sampled_to_its_end_if_its_picture_is_kept(random_inpainter, build, decoded) -> None:
    inpaint = DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=4)
    transform = build(Shrinking(1, 4, 2), inpaint=inpaint, validator=Validator(on_exhausted="flag"), least=0.9)
    result = transform(sample())
    best = deepcopy(inpaint).set_random_state(seed=transform.seeds[1])(sample())
    assert decoded == [1, 1] and torch.equal(result["image"], best["image"])


def test_slices_that_do_not_fit_into_one_batch_are_looked_at_when_they_are_done(random_inpainter, build) -> None:
    volume = {key: torch.stack([value] * 3, -1) for key, value in sample().items() if key != "prompt"} | {"prompt": PROMPT}
    for batch, early in ((2, False), (4, True)):
        shown: list[Tensor] = []

        def remember(latents: Tensor, shown: list[Tensor] = shown) -> Tensor:
            shown.append(latents)
            return torch.full_like(latents[:, :1], 9.0)

        inpaint = DiffusionLocalInpaintd(
            "image", model=random_inpainter, num_inference_steps=4, options=InpaintOptions(run=Run(slice_batch_size=batch))
        )
        transform = build(remember, inpaint=inpaint, label_key=None)
        result = transform(volume)
        finished = inpaint.denoise(volume, seed=result["image_diffaug"]["seed"])["image"].outcome.latents
        assert len(shown) == 1 and len(shown[0]) == 3 and torch.equal(shown[0], finished) is not early


def test_records_have_the_same_keys_and_types_whatever_the_screen_says(build) -> None:
    records = [build(screen)(sample())["image_diffaug"] for screen in (None, Scripted(True), Scripted(False))]
    records.append(build(Scripted(True), prob=0.0)(sample())["image_diffaug"])
    assert len({tuple((key, type(value)) for key, value in record.items()) for record in records}) == 1


def test_of_refused_candidates_the_best_is_decoded_if_a_picture_is_kept(build, decoded) -> None:
    transform = build(Shrinking(1, 4, 2), validator=Validator(on_exhausted="flag"), least=0.9)
    result = transform(sample())
    record = result["image_diffaug"]
    assert decoded == [1] and record["applied"] and not record["accepted"] and record["tries"] == 3 and 0 < record["score"] < 0.9
    best = deepcopy(transform.inpaint).set_random_state(seed=transform.seeds[1])(sample())
    assert torch.equal(result["image"], best["image"]) and torch.equal(result["label"], best["label"])
    assert record["seed"] == best["image_diffaug"]["seed"] and bool(result["label"].any())


def test_the_best_of_refused_candidates_is_recorded_though_nothing_is_kept(build, decoded) -> None:
    transform = build(Shrinking(1, 4, 2), least=0.9)
    record = transform(sample())["image_diffaug"]
    flagged = build(Shrinking(1, 4, 2), validator=Validator(on_exhausted="flag"), least=0.9)(sample())["image_diffaug"]
    measured = {name: flagged[name] for name in ("contrast", "cnr", "size_mm")}  # of the decoded candidate
    assert decoded == [1] and {**record, **measured, "applied": True} == flagged and all(measured.values())


def test_drop_drops_without_decoding(build, decoded) -> None:
    with pytest.raises(DroppedSampleError, match="refused before decoding"):
        build(Scripted(False), validator=Validator(on_exhausted="drop"))(sample())
    assert decoded == []


def test_a_judged_candidate_comes_before_a_refused_one(build, decoded) -> None:
    transform = build(Scripted(False, True, False), validator=Validator(on_exhausted="flag"), model=lenient(nothing, min_dice=0.5))
    result = transform(sample())
    assert decoded == [1] and "found nothing" in result["image_diffaug"]["reason"] and result["image_diffaug"]["tries"] == 3
    assert transform.statistics == {"accepted": 0, "rejected": 1, "retried": 2, "screened": 2}


@pytest.mark.parametrize(("fate", "applied"), [("original", False), ("flag", True)])
def test_without_retry_one_candidate_is_refused(build, decoded, fate: str, applied: bool) -> None:
    transform = build(Scripted(False), on_reject=fate)
    record = transform(sample())["image_diffaug"]
    assert record["applied"] is applied and record["tries"] == 1 and len(decoded) == applied
    assert transform.statistics == {"accepted": 0, "rejected": 1, "retried": 0, "screened": 1}


def test_images_of_one_sample_share_the_refusal(random_inpainter, decoded) -> None:
    inpaint = DiffusionLocalInpaintd(["image", "other"], model=random_inpainter, num_inference_steps=1, keep_original=True)
    transform = LatentValidated(
        ["image", "other"], inpaint=inpaint, model=lenient(), screen=Screen(Scripted(True, False), min_dice=0.1), on_reject="original"
    )
    data = {**sample(), "other": sample()["image"] + 1}
    result = transform(data)
    assert decoded == [] and result["image"] is data["image"] and result["other"] is data["other"]
    assert not result["image_diffaug"]["accepted"] and not result["other_diffaug"]["accepted"]
    assert not any(str(key).endswith("_original") for key in result)


def test_an_empty_mask_and_a_failed_edit_come_back_as_without_a_screen(build, random_inpainter) -> None:
    empty = {**sample(), "mask": torch.zeros(1, 70, 90)}
    fails = DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=1, on_error="passthrough")
    broken = {**sample(), "image": torch.full((1, 70, 90), float("nan"))}
    for data, inpaint in ((empty, None), (broken, fails)):
        without, with_screen = (build(screen, inpaint=inpaint)(dict(data))["image_diffaug"] for screen in (None, Scripted(False)))
        assert without == with_screen and without["reason"] and not without["applied"]


def test_the_draws_do_not_depend_on_the_screen(build) -> None:
    after = []
    for screen in (None, Scripted(True), Scripted(False)):
        transform = build(screen)
        transform(sample())
        after.append(int(transform.R.randint(2**31)))
    assert len(set(after)) == 1


def test_the_screen_needs_an_inpainting_that_can_stop_before_decoding() -> None:
    with pytest.raises(ValueError, match=r"screen= looks before the decoding.*inpaint=DiffusionLocalInpaintd"):
        LatentValidated("image", screen="tiny")
    with pytest.raises(ValueError, match="DiffusionLocalInpaintd"):
        LatentValidated("image", screen="tiny", inpaint=lambda data: dict(data))


def test_a_screen_of_another_vae_says_so_at_the_first_sample(build) -> None:
    with pytest.raises(ValueError, match="another VAE"):
        build(LatentScreen(Scripted(True), fingerprint="0123"))(sample())


def test_an_instance_stays_small_and_its_hash_knows_the_screen(random_inpainter) -> None:
    def made(**options: Any) -> LatentValidated:
        return LatentValidated("image", inpaint=DiffusionLocalInpaintd("image", model=random_inpainter), **options)

    assert len(pickle.dumps(made(screen="tiny"))) < 100_000
    hashes = {transform_hashing(made(**o)) for o in ({}, {"screen": "tiny"}, {"screen": Screen(min_dice=0.9)})}
    assert len(hashes) == 3 and transform_hashing(made(screen="tiny")) in hashes
