"""``TextPrompt`` and ``TextPromptd``: draw a radiological prompt from a vocabulary."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from monai.transforms.transform import MapTransform

from monai_diffaug.prompts import DEFAULT_TEMPLATE, Vocabulary, compose_prompt, vocabulary_of
from monai_diffaug.transforms.seeded import SeededTransform

__all__ = ["TextPrompt", "TextPromptD", "TextPromptDict", "TextPromptd"]

NEAR_SPELLING = 0.6  # difflib's ratio from which a finding of the vocabulary is proposed; its default

class TextPrompt(SeededTransform):
    """Draw one prompt "{modality} of {anatomy}, {finding}, {attributes}".

    Args:
        modality: "ultrasound", "CT", "MRI", "x-ray", "endoscopy" or "fundus"; any word with a ``vocabulary``.
        anatomy: one word, or several to draw from. None draws an anatomy for which the vocabulary lists the finding. Several findings
            and anatomies are combined only as the vocabulary lists them. ``monai-diffaug info --vocabulary`` prints the vocabulary.
        finding: one finding, or several to draw from; None draws from the vocabulary's findings for the anatomy. A finding that the
            vocabulary does not list needs an ``anatomy``.
        attributes: axes of the vocabulary to describe, e.g. ("shape", "margin"), or a mapping axis -> words; None takes every axis of the
            vocabulary, () none.
        attribute_prob: probability that an axis is described.
        template: any text with the fields modality, anatomy, finding, attributes.
        vocabulary: a ``Vocabulary`` that replaces the built-in table.
        mix: number of prompts that are mixed; above 1 the result is a list of (weight, text) whose text states
            ``DiffusionLocalInpaint`` averages (EMIT-Diff). The weights sum to 1 and are drawn from a flat Dirichlet distribution.
        prob: probability of drawing; otherwise the prompt of the first anatomy and finding without attributes.

    Raises:
        ValueError: unknown modality, anatomy or attribute axis, an unknown finding without an anatomy, an empty choice, a mix of less
            than one, or a template with an unknown field.

    >>> TextPrompt("ultrasound", anatomy="breast", finding="simple cyst", attributes=())()
    'ultrasound of breast, simple cyst'
    >>> draw = TextPrompt("MRI", anatomy="brain", attributes=("size",), attribute_prob=1.0).set_random_state(seed=0)
    >>> draw() in {f"MRI of brain, {f}, {s}" for f in vocabulary_of("MRI").findings["brain"] for s in ("small", "medium-sized", "large")}
    True
    """

    def __init__(
        self,
        modality: str,
        *,
        anatomy: str | Sequence[str] | None = None,
        finding: str | Sequence[str] | None = None,
        attributes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        attribute_prob: float = 0.5,
        template: str = DEFAULT_TEMPLATE,
        vocabulary: Vocabulary | None = None,
        mix: int = 1,
        prob: float = 1.0,
    ) -> None:
        SeededTransform.__init__(self, prob)
        if mix < 1:
            raise ValueError(f"mix must be 1 (one prompt) or more, got {mix}")
        self.mix = mix
        table = vocabulary if vocabulary is not None else vocabulary_of(modality)
        if not 0.0 <= attribute_prob <= 1.0:
            raise ValueError(f"attribute_prob must be in [0, 1], got {attribute_prob}")
        findings = _choices("finding", finding)
        named = _choices("anatomy", anatomy)
        self.modality = table.modality
        self.pairs: list[tuple[str, tuple[str, ...]]] = []
        for place in named or _anatomies_of(table, findings):
            known = (findings if named else _findings_at(table, place, findings)) or tuple(table.findings.get(place, ()))
            if not known:
                raise ValueError(
                    f"anatomy {place!r} is not in the vocabulary of {table.modality} ({', '.join(table.anatomies)}); name a finding as well"
                )
            self.pairs.append((place, known))
        self.attributes = _attribute_words(table, attributes)
        self.attribute_prob = attribute_prob
        self.template = template
        try:
            compose_prompt(self.modality, self.pairs[0][0], self.pairs[0][1][0], (), template)
        except (KeyError, IndexError) as error:
            raise ValueError(f"template {template!r} has a field other than modality, anatomy, finding and attributes: {error}") from error

    def __call__(self, randomize: bool = True) -> str | list[tuple[float, str]]:
        """The next prompt, or the next mix of prompts."""
        if randomize:
            self.randomize()
        return self.drawn(self.seed, self._do_transform)

    def drawn(self, seed: int, triggered: bool = True) -> str | list[tuple[float, str]]:
        """The prompt of a seed, or with ``mix`` above 1 that many (weight, text) pairs; the plain text when not triggered."""
        if self.mix == 1:
            return self.prompt(seed) if triggered else self.plain()
        if not triggered:
            return [(1 / self.mix, self.plain())] * self.mix
        rng = np.random.RandomState(seed)
        weights = rng.dirichlet(np.ones(self.mix)).tolist()
        return [(weight, self.prompt(int(each))) for weight, each in zip(weights, rng.randint(2**31, size=self.mix), strict=True)]

    def prompt(self, seed: int) -> str:
        """The text of a seed."""
        rng = np.random.RandomState(seed)
        place, findings = self.pairs[rng.randint(len(self.pairs))]
        finding = findings[rng.randint(len(findings))]
        words = [options[rng.randint(len(options))] for options in self.attributes if rng.rand() < self.attribute_prob]
        return compose_prompt(self.modality, place, finding, words, self.template)

    def plain(self) -> str:
        """The first anatomy and finding, without attributes."""
        place, findings = self.pairs[0]
        return compose_prompt(self.modality, place, findings[0], (), self.template)


class TextPromptd(SeededTransform, MapTransform):
    """Write a drawn prompt into each key, see ``TextPrompt`` for the options.

    Args:
        keys: keys that the text (or the mix of texts) is written to; one prompt per sample, the same in all keys. They need not exist.

    >>> TextPromptd("prompt", modality="CT", anatomy="abdomen", finding="hepatic cyst", attributes=())({})
    {'prompt': 'CT of abdomen, hepatic cyst'}
    """

    def __init__(
        self,
        keys: str | Sequence[str] = "prompt",
        *,
        modality: str,
        anatomy: str | Sequence[str] | None = None,
        finding: str | Sequence[str] | None = None,
        attributes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        attribute_prob: float = 0.5,
        template: str = DEFAULT_TEMPLATE,
        vocabulary: Vocabulary | None = None,
        mix: int = 1,
        prob: float = 1.0,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys=True)
        SeededTransform.__init__(self, prob)
        self.text = TextPrompt(
            modality,
            anatomy=anatomy,
            finding=finding,
            attributes=attributes,
            attribute_prob=attribute_prob,
            template=template,
            vocabulary=vocabulary,
            mix=mix,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        return {**data, **dict.fromkeys(self.keys, self.text.drawn(self.seed, self._do_transform))}


TextPromptD = TextPromptDict = TextPromptd


def _choices(name: str, value: str | Sequence[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    chosen = (value,) if isinstance(value, str) else tuple(value)
    if not chosen or not all(isinstance(word, str) and word.strip() for word in chosen):
        raise ValueError(f"{name} must be a text or a non-empty sequence of texts, got {value!r}")
    return chosen


def _anatomies_of(table: Vocabulary, findings: tuple[str, ...]) -> tuple[str, ...]:
    """Anatomies for which the vocabulary lists one of the findings; all anatomies without a finding.

    Raises:
        ValueError: the vocabulary does not list a finding, so its anatomy is unknown.
    """
    listed = {finding: place for place in table.anatomies for finding in table.findings[place]}
    for unknown in (finding for finding in findings if finding not in listed):
        spellings = {finding.lower(): finding for finding in listed}
        near = [spellings[each] for each in get_close_matches(unknown.lower(), spellings, n=3, cutoff=NEAR_SPELLING)]
        meant = " or ".join(f"{finding!r} ({listed[finding]})" for finding in near)
        raise ValueError(
            f"finding {unknown!r} is not in the vocabulary of {table.modality}{f'; did you mean {meant}?' if near else '.'} For a finding "
            f"in your own words name its anatomy too, anatomy='...': one of {', '.join(table.anatomies)}, or any other word"
        )
    return tuple(place for place in table.anatomies if not findings or set(findings) & set(table.findings[place]))


def _findings_at(table: Vocabulary, place: str, findings: tuple[str, ...]) -> tuple[str, ...]:
    """Findings without those that the vocabulary lists for other anatomies only; all findings if that leaves none."""
    elsewhere = {finding for listed in table.findings.values() for finding in listed} - set(table.findings[place])
    return tuple(finding for finding in findings if finding not in elsewhere) or findings


def _attribute_words(table: Vocabulary, attributes: Sequence[str] | Mapping[str, Sequence[str]] | None) -> list[tuple[str, ...]]:
    if isinstance(attributes, Mapping):
        return [_choices(f"attributes[{axis!r}]", words) for axis, words in attributes.items() if words]
    axes = tuple(table.attributes) if attributes is None else (attributes,) if isinstance(attributes, str) else tuple(attributes)
    unknown = [axis for axis in axes if axis not in table.attributes]
    if unknown:
        raise ValueError(
            f"attribute axis {unknown[0]!r} is not in the vocabulary of {table.modality}; it has {', '.join(table.attributes)}"
        )
    return [table.attributes[axis] for axis in axes]
