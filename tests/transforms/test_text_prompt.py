from __future__ import annotations

import pytest

from monai_diffaug.prompts import VOCABULARIES, Vocabulary
from monai_diffaug.transforms.text_prompt import TextPrompt, TextPromptd


@pytest.mark.parametrize("modality", sorted(VOCABULARIES))
def test_every_modality_gives_prompts_from_its_vocabulary(modality: str) -> None:
    vocabulary = VOCABULARIES[modality]
    transform = TextPrompt(modality)
    for seed in range(20):
        text = transform.prompt(seed)
        place = next(a for a in vocabulary.anatomies if text.startswith(f"{vocabulary.modality} of {a}, "))
        assert any(f", {finding}" in text for finding in vocabulary.findings[place])


def test_a_finding_is_placed_in_an_anatomy_that_knows_it() -> None:
    transform = TextPrompt("ultrasound", finding=["benign mass", "malignant mass"], attributes=())
    assert {transform.prompt(seed) for seed in range(40)} == {
        "ultrasound of breast, benign mass",
        "ultrasound of breast, malignant mass",
    }


def test_findings_of_several_anatomies_are_each_drawn_where_they_occur() -> None:
    transform = TextPrompt("MRI", finding=["glioma", "meningioma", "vertebral metastasis"], attributes=())
    assert {transform.prompt(seed) for seed in range(60)} == {
        "MRI of brain, glioma",
        "MRI of brain, meningioma",
        "MRI of spine, vertebral metastasis",
    }
    named = TextPrompt("MRI", anatomy="brain", finding=["glioma", "vertebral metastasis"], attributes=())
    assert {named.prompt(seed) for seed in range(20)} == {"MRI of brain, glioma", "MRI of brain, vertebral metastasis"}


def test_one_word_for_an_attribute_is_a_word_and_not_its_letters() -> None:
    transform = TextPrompt("CT", anatomy="chest", finding="lung nodule", attributes={"shape": "round"}, attribute_prob=1.0)
    assert transform.prompt(0) == "CT of chest, lung nodule, round"


def test_a_finding_in_own_words_needs_its_anatomy_and_is_used_as_it_is() -> None:
    assert TextPrompt("CT", anatomy="liver", finding="liver tumour", attributes=()).prompt(0) == "CT of liver, liver tumour"
    assert TextPrompt("CT", anatomy="abdomen", finding="liver tumour", attributes=()).prompt(0) == "CT of abdomen, liver tumour"


def test_attribute_prob_one_names_every_axis_and_zero_none() -> None:
    full = TextPrompt("CT", anatomy="brain", finding="ischaemic stroke", attribute_prob=1.0).prompt(1)
    none = TextPrompt("CT", anatomy="brain", finding="ischaemic stroke", attribute_prob=0.0).prompt(1)
    assert full.count(",") == 1 + len(VOCABULARIES["ct"].attributes)
    assert none == "CT of brain, ischaemic stroke"


def test_own_vocabulary_and_template() -> None:
    vocabulary = Vocabulary("OCT", {"macula": ("drusen",)}, {"reflectivity": ("hyporeflective",)}, "reflectivity")
    transform = TextPrompt("OCT", vocabulary=vocabulary, attribute_prob=1.0, template="{finding} ({attributes}) in {anatomy}")
    assert transform.prompt(0) == "drusen (hyporeflective) in macula"


def test_the_prompt_is_written_into_the_sample_and_repeats_with_the_seed() -> None:
    texts = [TextPromptd("prompt", modality="mri").set_random_state(seed=5)({"image": 1})["prompt"] for _ in range(2)]
    assert texts[0] == texts[1] and texts[0].startswith("MRI of ")


def test_not_triggered_still_writes_a_prompt_and_draws_as_many_numbers() -> None:
    never, always = TextPromptd(modality="mri", prob=0.0), TextPromptd(modality="mri", prob=1.0)
    never.set_random_state(seed=1), always.set_random_state(seed=1)
    assert never({})["prompt"] == "MRI of brain, glioma"
    always({})
    assert never.R.randint(1 << 30) == always.R.randint(1 << 30)


def test_a_mix_is_drawn_as_weights_that_sum_to_one_and_prompts_and_repeats_with_the_seed() -> None:
    mixed = [TextPromptd("prompt", modality="mri", mix=3).set_random_state(seed=5)({})["prompt"] for _ in range(2)]
    weights, texts = zip(*mixed[0], strict=True)
    assert mixed[0] == mixed[1] and len(texts) == 3 and len(set(texts)) > 1 and all(text.startswith("MRI of ") for text in texts)
    assert sum(weights) == pytest.approx(1) and min(weights) > 0 and len(set(weights)) == 3 and type(weights[0]) is float
    plain = TextPromptd("prompt", modality="mri", mix=3, prob=0.0)({})["prompt"]
    assert plain == [(1 / 3, "MRI of brain, glioma")] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "sonar"}, "no vocabulary; use one of ct, endoscopy"),
        ({"modality": "ct", "anatomy": "moon"}, "'moon' is not in the vocabulary"),
        ({"modality": "ct", "attributes": ["colour"]}, "'colour' is not in the vocabulary"),
        ({"modality": "ct", "finding": []}, "non-empty"),
        ({"modality": "ct", "template": "{organ}"}, "field other than"),
        ({"modality": "ct", "attribute_prob": 2.0}, "attribute_prob"),
        ({"modality": "ct", "mix": 0}, "mix must be 1"),
        ({"modality": "ct", "finding": "liver metastases"}, r"did you mean 'liver metastasis' \(abdomen\).*one of brain, abdomen, chest"),
        ({"modality": "ultrasound", "finding": ["benign mass", "abscess"]}, "'abscess' is not in the vocabulary.*breast, thyroid, liver"),
        ({"modality": "ultrasound", "finding": "Benign Mass"}, r"did you mean 'benign mass' \(breast\)"),
    ],
)
def test_wrong_options_are_refused_with_what_is_known(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        TextPrompt(**options)
