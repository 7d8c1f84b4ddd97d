"""The dictionary form: keys, groups, the validator and the guard against copies, loaders."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose

from monai_diffaug import Blend, DonorBank, Donors, Geometry, LatentValidated, LesionBank, LesionNovelty, Transplant, TransplantLesiond
from monai_diffaug.transforms.latent_validate import LatentValidate

KEYS = {"image", "label", "mask", "image_diffaug", "patient", "organ", "map", "text"}


def picture(seed: int) -> torch.Tensor:
    return (torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(seed)) * 80 + 60).to(torch.uint8)


def lesion_sample(seed: int) -> dict[str, Any]:
    label = torch.zeros(1, 64, 64, dtype=torch.uint8)
    label[:, 20:30, 20:34] = 1
    coarse = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    texture = (torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear")[0] * 120).to(torch.uint8)
    return {"image": torch.where(label > 0, texture, picture(seed)), "label": label, "patient": f"p{seed}", "finding": "cyst"}


SAMPLES = [lesion_sample(seed) for seed in range(4)]
BANK = DonorBank.of(SAMPLES, group_key="patient")


def sample(seed: int = 9, **more: Any) -> dict[str, Any]:
    everything = {"image": picture(seed), "label": torch.zeros(1, 64, 64, dtype=torch.uint8), "patient": "new"}
    organ = torch.zeros(1, 64, 64)
    organ[:, :, 30:] = 1
    return {**everything, "organ": organ, "map": torch.ones(1, 64, 64), "text": "CT of liver, cyst", **more}


def move(**options: Any) -> TransplantLesiond:
    return TransplantLesiond("image", **{"bank": BANK, "label_key": "label", "group_key": "patient", "strength": 0, **options})


def test_the_same_keys_whether_it_was_triggered_or_not_and_nothing_is_written_in_place() -> None:
    given = sample()
    before = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in given.items()}
    triggered, untriggered = (move(prob=prob).set_random_state(0)(given) for prob in (1.0, 0.0))
    nothing = move(transplant=Transplant(donors=Donors(finding="none"))).set_random_state(0)(given)
    assert set(triggered) == set(untriggered) == set(nothing) == KEYS
    records = [each["image_diffaug"] for each in (triggered, untriggered, nothing)]
    types = [{key: type(value) for key, value in record.items()} for record in records]
    assert types[0] == types[1] == types[2] and {str, int, float, bool} >= set(types[0].values())
    assert untriggered["image"] is given["image"] and untriggered["label"] is given["label"] and not untriggered["mask"].any()
    assert records[1]["reason"] == "not triggered" and records[2]["reason"].startswith("no donor")
    assert all(torch.equal(given[key], before[key]) if isinstance(before[key], torch.Tensor) else True for key in before)
    assert torch.equal(triggered["label"], triggered["mask"]) and records[0]["donor_group"] in {"p0", "p1", "p2", "p3"}


def test_the_group_of_the_sample_is_left_out_and_must_be_there() -> None:
    assert {move().edit(sample(patient="p0"), seed=seed)["image_diffaug"]["donor_group"] for seed in range(20)} == {"p1", "p2", "p3"}
    with pytest.raises(KeyError, match="no 'patient'"):
        move()({key: value for key, value in sample().items() if key != "patient"})
    with pytest.raises(KeyError, match="no 'label'"):
        move()({key: value for key, value in sample().items() if key != "label"})


def test_region_map_and_prompt_are_read_from_their_keys() -> None:
    options = Transplant(place="map")
    result = move(region_key="organ", prompt_key="text", transplant=options).edit(sample(), seed=0)
    assert result["image_diffaug"]["prompt"] == "CT of liver, cyst" and not result["mask"][..., :30].any()
    likelihood = torch.zeros(1, 64, 64)
    likelihood[:, 40, 45] = 1
    for transplant, given in (
        (options, sample(map=likelihood)),
        (Transplant(place=lambda image: likelihood * (image.shape == (1, 64, 64))), sample()),
    ):
        rows, columns = np.nonzero(np.asarray(move(transplant=transplant).edit(given, seed=0)["mask"][0]))
        assert abs(rows.mean() - 40) < 3 and abs(columns.mean() - 45) < 3
    with pytest.raises(KeyError, match="no 'heat'"):
        move(transplant=Transplant(place="heat"))(sample())


def test_one_key_only() -> None:
    with pytest.raises(ValueError, match="keys must be one key, got t1, t2"):
        TransplantLesiond(["t1", "t2"], bank=BANK)


def test_missing_images_are_skipped_on_request() -> None:
    without = {"label": torch.zeros(1, 64, 64), "patient": "x"}
    assert move(allow_missing_keys=True)(without) == without
    with pytest.raises(KeyError, match="image"):
        move()(without)


def test_results_do_not_depend_on_batch_size_or_workers(tmp_path: Path) -> None:
    chain = Compose([move(bank=BANK.save(tmp_path / "bank.npz"), strength=0.3, prob=0.7)])
    data = [{key: value for key, value in sample(seed).items() if key in ("image", "label", "patient")} for seed in range(5)]

    def images(batch_size: int, workers: int) -> torch.Tensor:
        torch.manual_seed(0)  # MONAI's DataLoader seeds the transforms from the global generator
        loader = DataLoader(Dataset(data, chain), batch_size=batch_size, num_workers=workers)
        return torch.cat([batch["image"] for batch in loader])

    one = images(1, 0)
    assert torch.equal(images(2, 0), one) and torch.equal(images(5, 0), one)
    assert not torch.equal(one, torch.stack([each["image"] for each in data]))
    assert len(pickle.dumps(chain)) < 100_000


def test_a_rejected_transplant_is_put_back_with_an_empty_mask() -> None:
    nothing = lambda images: torch.zeros(len(images), 1, *images.shape[-2:])  # noqa: E731
    for inner in (move(), move(keep_original=True)):
        given = sample()
        result = LatentValidated("image", label_key="label", model=nothing, inpaint=inner).set_random_state(0)(given)
        record = result["image_diffaug"]
        assert set(result) == KEYS and not record["accepted"] and not record["applied"] and record["donor"].endswith("#1")
        assert result["image"] is given["image"] and result["label"] is given["label"] and not result["mask"].any()
    chain = Compose([move(keep_original=True), LatentValidated("image", label_key="label", model=nothing)]).set_random_state(0)
    given = sample()
    result = chain(given)
    assert set(result) == KEYS and not result["mask"].any() and torch.equal(result["image"], given["image"])


def test_a_validator_that_holds_it_draws_new_donors_and_has_the_same_keys_when_untriggered() -> None:
    seen: list[torch.Tensor] = []

    def dark(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.zeros(len(images), 1, *images.shape[-2:])

    validated = LatentValidated("image", label_key="label", model=dark, inpaint=move(), on_reject="retry", max_tries=3).set_random_state(1)
    assert validated(sample())["image_diffaug"]["tries"] == 3
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1])
    untriggered = LatentValidated("image", label_key="label", model=dark, inpaint=move(), prob=0.0)(sample())
    assert set(untriggered) == KEYS and set(untriggered["image_diffaug"]) == set(validated(sample())["image_diffaug"])


def test_a_screen_looks_at_the_latents_of_a_transplant() -> None:
    validated = LatentValidated("image", label_key="label", inpaint=move(strength=0.3), screen="tiny", on_reject="flag").set_random_state(0)
    record = validated(sample())["image_diffaug"]
    assert record["donor"] and (record["applied"] or validated.statistics["screened"] == 1)


def test_the_guard_exempts_the_donor_on_request_and_still_refuses_copies_of_others() -> None:
    patterns = LesionBank.of(SAMPLES, group_key="patient")
    still = Geometry(mirror="none", rotate_deg=0, scale_range=(1, 1), elastic=0)
    result = move(transplant=Transplant(donors=Donors(exclude_groups=["p1", "p2", "p3"]), geometry=still, blend=Blend(join="soft"))).edit(
        sample(), seed=1
    )
    image, mask = result["image"], result["mask"]
    assert result["image_diffaug"]["donor_group"] == "p0"
    strict, lenient = LesionNovelty(patterns, limit=0.9), LesionNovelty(patterns, limit=0.9, exempt_donor=True)
    assert "copy of training lesion 0" in strict(image, mask, donor_group="p0").reason
    assert lenient(image, mask, donor_group="p0").novel and not lenient(image, mask, donor_group="p1").novel
    assert not lenient(image, mask).novel
    everything = lambda images: torch.ones(len(images), 1, *images.shape[-2:])  # noqa: E731
    for guard, reason in ((strict, "copy of training lesion"), (lenient, "")):
        validated = LatentValidated(
            "image",
            label_key="label",
            model=LatentValidate(everything, 0.0),
            inpaint=move(transplant=Transplant(geometry=still)),
            novelty=guard,
        )
        verdict = validated.set_random_state(0)(sample())["image_diffaug"]["reason"]
        assert ("copy of training lesion" in verdict) == bool(reason)


def test_a_guard_whose_lesions_are_all_exempt_finds_all_novel() -> None:
    one = LesionBank.of(SAMPLES[:2], group_key="patient")
    both = LesionNovelty(one, limit=0.5, exempt_donor=True)
    assert both.bank.nearest(SAMPLES[0]["image"], SAMPLES[0]["label"], exempt_group="p0").image in (1, -1)


def test_meta_tensors_stay_meta_tensors() -> None:
    affine = torch.diag(torch.tensor([0.4, 0.4, 1, 1], dtype=torch.float64))
    given = sample(image=MetaTensor(picture(9), affine=affine), label=MetaTensor(torch.zeros(1, 64, 64), affine=affine))
    result = move(strength=0.2).edit(given, seed=0)
    assert all(isinstance(result[key], MetaTensor) for key in ("image", "label", "mask"))
    assert result["label"].dtype == torch.float32 and torch.equal(result["mask"].affine, affine)
