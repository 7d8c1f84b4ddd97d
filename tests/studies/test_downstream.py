from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_diffaug.studies import downstream
from monai_diffaug.studies.arms import ARMS, Generator, arm_of, description_of, synthesise
from monai_diffaug.studies.downstream_tasks import (
    TaskSettings,
    accuracy,
    auc,
    batch_of,
    f1,
    score_classification,
    score_segmentation,
    size_of,
    train_classification,
    train_segmentation,
)
from monai_diffaug.studies.lesion_sources import BorrowedLesiond, OwnLesiond, OwnOrBorrowedLesiond
from monai_diffaug.studies.markers import replace_between
from monai_diffaug.studies.masked_images import MaskedImage
from monai_diffaug.studies.study_images import StudyData, StudyInputError
from monai_diffaug.studies.summary import summarise, table_of
from monai_diffaug.studies.synthetic_cache import SyntheticImages, digest_of, load_or_make
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.read_entry import read_entry

ROOT = Path(__file__).resolve().parents[2]
FAST = TaskSettings(steps=2, batch_size=2, size_px=64)
ALONE = Generator("tiny", "nothing", None, None, None, None)


def disc(rng: np.random.RandomState, radius: float = 14, finding: str = "benign mass", index: int = 0) -> MaskedImage:
    ys, xs = np.indices((128, 128))
    centre = rng.randint(30, 98, 2)
    label = np.hypot(ys - centre[0], xs - centre[1]) < radius
    bright = 190 if finding == "benign mass" else 20
    image = np.where(label, bright, 90) + rng.randint(0, 20, (128, 128))
    pixels, mask = torch.from_numpy(image[None].astype(np.uint8)), torch.from_numpy(label[None].astype(np.uint8))
    return MaskedImage(pixels, mask, finding, index, index, "ultrasound", "breast")


def normal(rng: np.random.RandomState) -> MaskedImage:
    case = disc(rng, 0)
    return replace(case, mask=torch.zeros_like(case.mask), finding="normal tissue", group=99, index=99)


def sample_of(case: MaskedImage) -> dict:
    words = {"finding": case.finding, "modality": case.modality, "anatomy": case.anatomy}
    return {"image": case.image, "label": case.mask, **words}


@pytest.fixture(scope="module")
def cases() -> list[MaskedImage]:
    rng = np.random.RandomState(0)
    return [*(disc(rng, finding=("benign mass", "malignant mass")[i % 2], index=i) for i in range(8)), normal(rng)]


def test_the_labelled_images_are_stratified_nested_and_one_per_group(breast):
    forty = downstream.labelled_cases(breast, 40)
    findings = [case.finding for case in forty]
    train = list({case.group: case.finding for case in downstream.cases_of(breast, "training")}.values())
    for finding in set(train):
        assert findings.count(finding) == pytest.approx(40 * train.count(finding) / len(train), abs=1.5)
    assert len({case.group for case in forty}) == 40
    assert [c.index for c in downstream.labelled_cases(breast, 10)] == [c.index for c in forty[:10]]
    assert [c.index for c in downstream.labelled_cases(breast, 10, 1)] != [c.index for c in forty[:10]]
    assert not {c.group for c in forty} & {c.group for c in downstream.cases_of(breast, "validation")}
    with pytest.raises(StudyInputError, match="cannot draw 9999"):
        downstream.labelled_cases(breast, 9999)


def test_grey_and_coloured_images_of_one_list_get_the_same_channels(packed):
    data = StudyData.open(packed("spleen_ct", "colonoscopy_polyp"))
    assert {case.image.shape[0] for case in downstream.cases_of(data, "validation")} == {3}
    assert {case.image.shape[0] for case in downstream.cases_of(data.only("spleen_ct"), "validation")} == {1}


def test_training_learns_and_leaves_the_global_random_state_alone(cases):
    state = torch.get_rng_state()
    settings = TaskSettings(steps=60, batch_size=4, size_px=64)
    network = train_segmentation(cases[:6], [], settings, seed=0)
    assert torch.equal(state, torch.get_rng_state())
    trained = np.mean([row["dice"] for row in score_segmentation(network, cases[6:8], settings)])
    untrained = train_segmentation(cases[:6], [], TaskSettings(steps=0, size_px=64), seed=0)
    assert trained > 0.5 > np.mean([row["dice"] for row in score_segmentation(untrained, cases[6:8], settings)])


def test_the_same_seed_trains_the_same_network(cases):
    one, two, other = (train_segmentation(cases, [], FAST, seed=s).state_dict() for s in (0, 0, 1))
    name = next(iter(one))
    assert torch.equal(one[name], two[name]) and not torch.equal(one[name], other[name])


@pytest.mark.parametrize(
    "train", [train_segmentation, lambda r, s, settings, seed: train_classification(r, s, "malignant mass", settings, seed)]
)
def test_a_compiled_training_steps_through_the_compiled_network(cases, monkeypatch, train):
    calls = []

    def compiled(network):
        return lambda images: calls.append(len(images)) or network(images)

    monkeypatch.setattr(torch, "compile", compiled)
    plain = train(cases, [], FAST, 0).state_dict()
    assert calls == []
    fast = train(cases, [], replace(FAST, compile=True), 0).state_dict()
    assert calls == [FAST.batch_size] * FAST.steps
    assert all(torch.equal(plain[name], fast[name]) for name in plain)


def test_scores_are_right_for_known_answers(cases):
    case, empty = cases[0], cases[-1]

    def perfect(image):
        return torch.where(image > 0.3, 9.0, -9.0)

    settings = TaskSettings(size_px=128)
    row, quiet = score_segmentation(perfect, [case, empty], settings)
    assert row["dice"] == 1 and row["hd95"] == 0 and row["fnr"] == 0 and row["missed"] == 0
    assert row["size"] == size_of(case.mask_hw.mean()) == "medium" and quiet["false_alarm"] == 0
    (blind,) = score_segmentation(lambda image: -torch.ones_like(image), [case], settings)
    assert blind["dice"] == 0 and blind["fnr"] == 1 and blind["missed"] == 1 and blind["hd95"] == pytest.approx(128 * 2**0.5)
    (alarm,) = score_segmentation(lambda image: torch.ones_like(image), [empty], settings)
    assert alarm["false_alarm"] == 1 and "dice" not in alarm


def test_synthetic_images_fill_their_share_of_the_batches(cases):
    rng = np.random.RandomState(0)
    synthetic = [replace(cases[0], image=torch.zeros_like(cases[0].image), finding="x")]
    drawn = [c.finding for _ in range(40) for c in batch_of(rng, cases, synthetic, TaskSettings(synthetic_share=0.5, size_px=32))[2]]
    assert drawn.count("x") / len(drawn) == pytest.approx(0.5, abs=0.1)
    assert "x" not in [c.finding for c in batch_of(rng, cases, [], TaskSettings(size_px=32))[2]]


def test_images_and_labels_move_together(cases):
    images, labels, _ = batch_of(np.random.RandomState(0), [cases[0]], [], TaskSettings(batch_size=8, size_px=64))
    for image, label in zip(images, labels, strict=True):
        assert image[label > 0].mean() > image[label == 0].mean() + 0.3


def test_a_pasted_lesion_has_its_own_pixels_and_is_in_the_label(cases):
    base, donor = cases[-1], cases[0]
    d = BorrowedLesiond([donor], paste=True).set_random_state(0)(sample_of(base))
    mask = d["mask"][0].bool()
    assert mask.any() and torch.equal(d["label"][0].bool(), mask) and d["finding"] == "benign mass"
    assert float(d["image"][0][mask].float().mean()) > 150
    assert torch.equal(d["image"][0][~mask], base.image[0][~mask])


def test_a_lesion_goes_next_to_one_of_its_kind_on_free_tissue(cases):
    transform = BorrowedLesiond(cases)
    for seed in range(10):
        base = cases[seed % 8]
        d = transform.set_random_state(seed)(sample_of(base))
        assert d["finding"] == base.finding and not (d["mask"] & base.mask).any()
        assert d["finding"] in d["prompt"] and torch.equal(d["image"], base.image)


def test_the_own_lesion_is_the_mask(cases):
    d = OwnLesiond()(sample_of(cases[0]))
    assert torch.equal(d["mask"], cases[0].mask) and "benign mass" in d["prompt"]


def test_own_and_borrowed_lesions_share_one_stream_and_normal_images_always_borrow(cases):
    transform = OwnOrBorrowedLesiond(cases)

    def drawn(base: MaskedImage, seed: int) -> torch.Tensor:
        return transform.set_random_state(seed)(sample_of(base))["mask"]

    is_own = [torch.equal(drawn(cases[0], seed), cases[0].mask) for seed in range(20)]
    assert 4 < sum(is_own) < 16
    assert all(drawn(cases[-1], seed).any() for seed in range(5))
    assert all(torch.equal(drawn(cases[0], seed), drawn(cases[0], seed)) for seed in range(6))


@pytest.fixture(scope="module")
def untrained(random_inpainter) -> Generator:
    """A generator of random weights with every network that an arm may need."""
    from monai_diffaug.models.controlnet import build_controlnet
    from monai_diffaug.models.inpainter import load_inpainter
    from monai_diffaug.models.registry import shared_model, spec_of
    from monai_diffaug.models.semantic_controller import build_semantic_model

    inpainter = shared_model(spec_of("inpainter", random_inpainter), "cpu", load_inpainter)
    controlnet = build_controlnet(inpainter.unet, inpainter.factor)
    return Generator(random_inpainter, "nothing", None, "tiny", controlnet, build_semantic_model(inpainter))


def made_by(arm: str, cases: list[MaskedImage], generator: Generator) -> tuple[MaskedImage, MaskedImage]:
    """The first image that an arm makes of the first case, and that case."""
    transform = arm_of(arm)[0](cases[:2], generator)
    return next(m for m in (synthesise(transform, cases[:1], 0, k) for k in range(6)) if m is not None), cases[0]


@pytest.mark.parametrize("arm", [name for name, (factory, _) in ARMS.items() if factory and name not in ("diffaug", "real_lesions")])
def test_generator_arms_make_labelled_images(cases, untrained, arm):
    made, base = made_by(arm, cases, untrained)
    assert made.image.shape == (1, 128, 128) and made.image.dtype == torch.uint8 and made.mask.any()
    assert made.finding == base.finding


@pytest.mark.parametrize("arm", ["emit_diff", "emit_diff_merged", "emit_diff_two_scales"])
def test_a_slice_made_from_its_edges_keeps_its_label(cases, untrained, arm):
    made, base = made_by(arm, cases, untrained)
    assert torch.equal(made.mask, base.mask)
    changed = float((made.image != base.image).float().mean())
    assert 0.1 < changed < 0.75 if arm == "emit_diff_merged" else changed > 0.9


def test_a_normal_slice_is_made_from_its_edges_too_and_has_no_own_lesion_to_outline(cases, untrained):
    normal_case = cases[-1:]
    assert not synthesise(arm_of("emit_diff")[0](cases, untrained), normal_case, 0, 0).mask.any()
    assert synthesise(arm_of("mila")[0](cases, untrained), normal_case, 0, 0) is None


def test_mila_paints_what_medsam_outlines_and_leaves_the_label(cases, untrained):
    made, base = made_by("mila", cases, untrained)
    changed = (made.image != base.image).numpy()[0]
    assert changed[base.mask_hw].mean() > 0.8 and changed[~made.mask_hw].mean() < 0.2
    assert torch.equal(base.mask, made.mask)


@pytest.mark.parametrize("arm", [name for name, (_, networks) in ARMS.items() if networks])
def test_an_arm_says_which_option_names_the_network_that_it_lacks(cases, arm):
    factory, (network,) = ARMS[arm]
    with pytest.raises(ValueError, match=f"--{network.replace('_', '-')} NAME=SOURCE"):
        factory(cases, ALONE)


def test_every_arm_is_described_in_one_line():
    for factory, _ in ARMS.values():
        assert description_of(factory).endswith(".") and len(description_of(factory)) > 20


def test_samples_that_the_validator_refuses_are_left_out_and_other_errors_are_not(cases, random_inpainter):
    refuse = arm_of("diffaug")[0](cases, Generator(random_inpainter, "nothing"))  # random weights paint no lesion
    assert synthesise(refuse, cases, 0, 0) is None

    def broken(sample):
        raise RuntimeError("defect")

    with pytest.raises(RuntimeError, match="defect"):
        synthesise(broken, cases, 0, 0)


def test_any_dictionary_transform_is_an_arm_by_import_path():
    factory, networks = arm_of("monai_diffaug.studies.arms:_copy_paste")
    assert factory is ARMS["copy_paste"][0] and len(networks) == 4
    with pytest.raises(ValueError, match="no arm 'nonsense'"):
        arm_of("nonsense")


def test_synthesis_repeats_and_goes_on_where_it_stopped(tmp_path, cases):
    transform = arm_of("copy_paste")[0](cases, ALONE)
    whole = load_or_make(tmp_path / "a", transform, cases, 12, seed=3, max_seconds=60)
    first = load_or_make(tmp_path / "b", transform, cases, 12, seed=3, max_seconds=0)
    assert not first.cases
    load_or_make(tmp_path / "b", transform, cases, 8, seed=3, max_seconds=60)
    rest = load_or_make(tmp_path / "b", transform, cases, 12, seed=3, max_seconds=60)
    assert len(whole.cases) == len(rest.cases) == 12 and whole.attempts == rest.attempts
    assert all(torch.equal(a.image, b.image) and a.finding == b.finding for a, b in zip(whole.cases, rest.cases, strict=True))


def test_synthesis_gives_up_on_a_transform_that_changes_nothing(tmp_path, cases):
    made = load_or_make(tmp_path, lambda d: d, cases, 3, seed=0, max_seconds=60)
    assert made.cases == [] and made.attempts == 12


def test_classification_learns_and_its_scores_are_right(cases):
    settings = TaskSettings(steps=15, batch_size=8, size_px=32)
    network = train_classification(cases[:8], [], "malignant mass", settings, seed=0)
    rows = score_classification(network, cases, "malignant mass", settings)
    assert len(rows) == 8 and auc([r["probability"] for r in rows], [r["target"] for r in rows]) > 0.9
    assert auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75 and np.isnan(auc([0.1], [1]))
    assert auc([0.5, 0.5], [0, 1]) == 0.5
    assert accuracy([0.1, 0.9, 0.9], [0, 1, 0]) == pytest.approx(2 / 3) and f1([0.1, 0.9, 0.9], [0, 1, 0]) == pytest.approx(2 / 3)


def options_of(out, **changes) -> argparse.Namespace:
    options = downstream.build_parser().parse_args(["--out", str(out), "--steps", "2", "--synthetic", "3"])
    vars(options).update(changes)
    options.generators = downstream.generators_of(options)
    return options


def test_the_options_of_the_command_are_the_defaults_of_the_settings_and_reach_the_run(tmp_path, monkeypatch, breast):
    defaults = downstream.build_parser().parse_args([])
    assert [getattr(defaults, name) for name in vars(TaskSettings())] == list(vars(TaskSettings()).values())
    settings = {"steps": 1, "batch_size": 3, "size_px": 48, "synthetic_share": 0.25, "rate": 0.01, "compile": True}
    monkeypatch.setattr(downstream, "run_one", lambda *arguments: [])
    assert downstream.run_arm(options_of(tmp_path, **settings), breast, "none", 10, 0)["settings"] == settings


def test_a_run_is_kept_and_another_setup_in_its_place_is_refused(tmp_path, breast, monkeypatch):
    few = downstream.cases_of(breast, "validation")[:4]
    everything = downstream.cases_of
    monkeypatch.setattr(downstream, "cases_of", lambda data, section: few if section == "validation" else everything(data, section))
    result = downstream.run_arm(options_of(tmp_path), breast, "copy_paste", 10, 0)
    assert result["n_synthetic"] == 3 and len(result["images"]) == 4
    assert result["generator"]["seen"] == "no generator"
    monkeypatch.setattr(downstream, "run_one", None)  # a second run would fail
    assert downstream.run_arm(options_of(tmp_path), breast, "copy_paste", 10, 0)["images"] == json.loads(json.dumps(result["images"]))
    with pytest.raises(ValueError, match="another subset_seed, images_digest"):
        downstream.run_arm(options_of(tmp_path, subset_seed=1), breast, "copy_paste", 10, 0)
    with pytest.raises(ValueError, match=r"made with another settings; .* delete it, and .*synthetic/copy_paste_n10_s0 with it"):
        downstream.run_arm(options_of(tmp_path, steps=3), breast, "copy_paste", 10, 0)


def test_a_run_that_is_named_twice_counts_once(tmp_path, monkeypatch, user_datalist):
    called = []

    def run(options, data, arm, n, seed):
        called.append((arm, n, seed))
        return {"synthesis_s": 0, "training_s": 0, "n_synthetic": 0}

    monkeypatch.setattr(downstream, "run_arm", run)
    monkeypatch.setattr(downstream, "summarise", lambda runs: [])
    monkeypatch.setattr("monai_diffaug.studies.study_plot.plot_study", lambda summary, file: None)
    arguments = ["--arms", "none,copy_paste,none", "--n-train", "10,10", "--reference", "10", "--seeds", "1", "--out", str(tmp_path)]
    downstream.main(["--data", str(user_datalist), *arguments])
    assert called == [("none", 10, 0), ("copy_paste", 10, 0)]


def test_a_run_of_other_weights_under_the_same_path_is_refused(tmp_path, breast, monkeypatch):
    monkeypatch.setattr(downstream, "load_or_make", lambda *args, **options: SyntheticImages([], 0, 0.0))
    monkeypatch.setattr(downstream, "run_one", lambda *args: [])
    downstream.run_arm(options_of(tmp_path), breast, "mila", 10, 0)
    downstream.run_arm(options_of(tmp_path), breast, "mila", 10, 0)
    monkeypatch.setattr(downstream, "digest_of", lambda network, source: "retrained" if network == "medsam" else digest_of(network, source))
    with pytest.raises(ValueError, match="made of another medsam"):
        downstream.run_arm(options_of(tmp_path), breast, "mila", 10, 0)


def test_the_positive_finding_is_the_last_of_the_list_or_the_one_named(tmp_path, user_datalist):
    data = StudyData.open(user_datalist)
    assert downstream.positive_of(options_of(tmp_path), data) == "malignant nodule"
    assert downstream.positive_of(options_of(tmp_path, positive="benign nodule"), data) == "benign nodule"
    with pytest.raises(StudyInputError, match="got 'cyst'"):
        downstream.positive_of(options_of(tmp_path, positive="cyst"), data)


def test_a_generator_must_say_what_it_has_seen(tmp_path):
    with pytest.raises(ValueError, match="say what the generator has seen"):
        options_of(tmp_path, generator=["mine=folder"])
    with pytest.raises(ValueError, match="no generator 'mine'"):
        downstream.resolve(options_of(tmp_path).generators, "inpaint@mine")
    known = options_of(tmp_path, generator=["mine=folder"], seen=["mine=40 images"]).generators["mine"]
    assert known == Generator("folder", "40 images", None, None, None, None)


def test_the_networks_of_a_generator_are_named_one_by_one(tmp_path):
    mine = {"generator": ["mine=folder"], "seen": ["mine=40 images"]}
    generators = options_of(tmp_path, **mine, medsam=["mine=m"], semantic_controller=["shipped=folder2"]).generators
    assert generators["mine"].medsam == "m" and generators["mine"].validator is None
    assert generators["shipped"].semantic_controller == "folder2" and generators["shipped"].controlnet == "tiny"
    with pytest.raises(ValueError, match="arm 'diffaug@mine': this arm needs a validator"):
        downstream.resolve(options_of(tmp_path, **mine).generators, "diffaug@mine")
    with pytest.raises(ValueError, match="no generator 'yours'"):
        options_of(tmp_path, medsam=["yours=m"])


def test_a_run_names_the_networks_that_it_used_and_no_others(tmp_path):
    generators = options_of(tmp_path).generators
    _, generator, networks = downstream.resolve(generators, "mila")
    assert downstream.generator_record(generator, networks) == {"source": "tiny", "seen": downstream.SHIPPED_SEEN, "medsam": "tiny"}
    _, generator, networks = downstream.resolve(generators, "copy_paste")
    assert downstream.generator_record(generator, networks) == {"source": "", "seen": downstream.NO_GENERATOR}


def test_the_exported_datalist_is_what_train_reads(tmp_path, breast):
    cases = downstream.labelled_cases(breast, 7)
    contents = [read_entry(entry) for entry in read_datalist(downstream.export_datalist(breast, 7, 0, tmp_path))]
    assert [content.entry.is_normal for content in contents] == [case.is_normal for case in cases]
    for content, case in zip(contents, cases, strict=True):
        assert torch.equal(content.image, case.image) and torch.equal(content.ids, case.mask.long())


def run_of(arm: str, seed: int, dices: list[float]) -> dict:
    images = [{"index": i, "group": i, "dice": v, "hd95": 3.0, "fnr": 1 - v, "missed": 0, "size": "small"} for i, v in enumerate(dices)]
    generator = {"source": "tiny" if arm != "none" else "", "seen": "the test's author", "medsam": "outliner"}
    setup = {"task": "segmentation", "arm": arm, "n_train": 40, "seed": seed, "settings": {"steps": 5}, "n_synthetic": 0}
    setup["method"] = "Does this and that."
    return {**setup, "generator": generator, "images": images}


def test_the_summary_pairs_images_and_names_what_the_generator_has_seen(tmp_path):
    values = np.random.RandomState(0).rand(30)
    runs = [run_of("none", s, list(values)) for s in (0, 1)] + [run_of("mine", s, list(values + 0.1)) for s in (0, 1)]
    base, mine = summarise(runs, resamples=50)
    assert base["figures"]["dice"]["value"] == pytest.approx(values.mean()) and "dice_gain" not in base["figures"]
    gain = mine["figures"]["dice_gain"]
    assert gain["value"] == pytest.approx(0.1) and gain["low"] == pytest.approx(0.1)
    assert mine["figures"]["dice"]["low"] < mine["figures"]["dice"]["value"]
    text = table_of([base, mine])
    assert "- `mine`: Does this and that. Generator `tiny`, medsam `outliner`, has seen: the test's author." in text
    assert "- `none`: Does this and that. No generator." in text
    assert "+10.0 [10.0, 10.0]" in text and "fnr_small" in text and "fnr_large" not in text
    assert text.splitlines()[0].startswith("| arm | images | synthetic | seeds | dice | dice_gain |")
    pytest.importorskip("matplotlib")
    from monai_diffaug.studies.study_plot import plot_study

    assert plot_study([base, mine], tmp_path / "p.png") and (tmp_path / "p.png").stat().st_size > 5000


def test_more_real_images_are_compared_with_the_fewest():
    values = np.random.RandomState(0).rand(30)
    more = {**run_of("none", 0, list(values + 0.2)), "n_train": 250}
    few, many, mine = summarise([run_of("none", 0, list(values)), more, run_of("mine", 0, list(values - 0.1))], resamples=50)
    assert "dice_gain" not in few["figures"]
    assert many["figures"]["dice_gain"]["value"] == pytest.approx(0.2) and mine["figures"]["dice_gain"]["value"] == pytest.approx(-0.1)


def test_a_gain_in_auc_is_paired_by_image_and_seed():
    truth = np.arange(20) % 2
    helped, plain = truth * 0.8 + 0.1, np.random.RandomState(0).rand(20)

    def run(arm, seed, probabilities):
        images = [
            {"index": i, "group": i, "probability": float(p), "target": int(t)}
            for i, (p, t) in enumerate(zip(probabilities, truth, strict=True))
        ]
        return {**run_of(arm, seed, []), "task": "classification", "images": images}

    none, mine = summarise([run("none", 0, plain), run("none", 1, plain), run("mine", 1, helped), run("mine", 2, helped)], resamples=50)
    assert "auc_gain" not in none["figures"] and mine["figures"]["auc"]["value"] == 1
    gain = mine["figures"]["auc_gain"]
    assert gain["value"] == pytest.approx(1 - auc(plain, truth)) and len(gain["seed_means"]) == 1
    assert 0 < gain["low"] < gain["value"] < gain["high"] <= 1


def test_a_placeholder_in_a_generator_is_the_number_of_labelled_images(tmp_path, monkeypatch, breast):
    monkeypatch.setattr(downstream, "load_or_make", lambda *args, **options: SyntheticImages([], 0, 0.0))
    monkeypatch.setattr(downstream, "run_one", lambda *args: [])
    options = options_of(tmp_path, generator=["mine=runs/ft_{n}"], seen=["mine=the {n} images"], medsam=["mine=outliner_{n}"])
    for n in (10, 20):
        record = downstream.run_arm(options, breast, "mila@mine", n, 0)["generator"]
        assert record == {"source": f"runs/ft_{n}", "seen": f"the {n} images", "medsam": f"outliner_{n}"}


@pytest.mark.slow
def test_the_command_trains_the_reference_too_and_writes_the_table_into_a_text(tmp_path, monkeypatch, capsys, user_datalist):
    runs = []

    def run_arm(options, data, arm, n, seed):
        runs.append((arm, n, seed))
        return {**run_of(arm, seed, [0.5, 0.6]), "n_train": n, "synthesis_s": 0.0, "training_s": 0.0}

    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- study-few:start -->\n<!-- study-few:end -->\nb\n")
    monkeypatch.setattr(downstream, "run_arm", run_arm)
    options = ["--arms", "none,copy_paste", "--seeds", "2", "--n-train", "10", "--reference", "20", "--out", str(tmp_path), "--name", "few"]
    downstream.main(["--data", str(user_datalist), *options, "--readme", str(readme)])
    assert runs == [(arm, n, seed) for seed in (0, 1) for arm, n in (("none", 10), ("copy_paste", 10), ("none", 20))]
    summary = json.loads((tmp_path / "summary_few.json").read_text())
    assert [(row["arm"], row["n_train"]) for row in summary] == [("none", 10), ("copy_paste", 10), ("none", 20)]
    assert table_of(summary) in capsys.readouterr().out and f"\n{table_of(summary)}\n\n<!--" in readme.read_text()


STUDY_RESULTS = sorted((ROOT / "benchmarks" / "results").glob("breast_ultrasound_*.json"))


@pytest.mark.parametrize("results", STUDY_RESULTS, ids=lambda file: file.stem)
def test_the_documentation_shows_the_committed_study(results):
    text = (ROOT / "docs" / "studies" / "downstream.md").read_text()
    name = results.stem.removeprefix("breast_ultrasound_")
    assert replace_between(text, f"study-{name}", table_of(json.loads(results.read_text())) + "\n") == text
