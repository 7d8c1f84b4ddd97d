"""The transforms of a spec: the pipeline for lesions, the one for controls that follows from it, and the models of both."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai.transforms.compose import Compose
from monai.transforms.transform import Transform

from monai_diffaug.bundles.check_state import nearest_hint, reason_of
from monai_diffaug.bundles.key_flow import key_faults
from monai_diffaug.data.variants import DrawVariantd
from monai_diffaug.generate.job_record import CONTROL, LESION
from monai_diffaug.generate.spec import GenerateSpec, SpecError
from monai_diffaug.models.registry import OBJECT_PREFIX, ModelSpec, tiny_folder
from monai_diffaug.prompts import NORMAL
from monai_diffaug.transforms.cached_random import CachedRandomd
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.place_mask import PlaceMaskd
from monai_diffaug.transforms.text_prompt import TextPromptd

__all__ = ["EditChain", "Pipelines", "build_pipelines", "finding_of", "model_place", "require_keys", "steps_of"]

IMAGE, LABEL = "image", "label"


@dataclass(frozen=True)
class EditChain:
    """The transforms of one kind of job.

    Attributes:
        chain: all transforms.
        record_keys: keys of the records that the edits of "image" write, the last one last.
        mask_key: key of the last edit's mask.
        label_value: class id that the edits paint; 0 if it is not known before, or if there are several.
    """

    chain: Compose
    record_keys: tuple[str, ...]
    mask_key: str
    label_value: int


@dataclass(frozen=True)
class Pipelines:
    """The transforms of a spec.

    Attributes:
        by_kind: "lesion" and "control" -> its transforms; a kind that the spec does not make is missing.
        models: kind of a model -> its spec; the one named "inpainter" is that of the records.
    """

    by_kind: Mapping[str, EditChain]
    models: Mapping[str, ModelSpec]


def build_pipelines(spec: GenerateSpec) -> Pipelines:
    """Construct the transforms of a spec; nothing is loaded.

    Raises:
        SpecError: an option of a transform is wrong, no edit of "image", a key that is not there, a transform whose results depend on the
            order of the jobs, or controls of a pipeline that has none.
    """
    chain = _chain(spec, "pipeline", spec.pipeline)
    chains = {LESION: chain} if spec.normal < 1 else {}
    if spec.normal > 0:
        chains[CONTROL] = _derived_control(chain) if spec.control is None else _chain(spec, "control", spec.control)
    models: dict[str, ModelSpec] = {}
    for each in chains.values():
        for step in steps_of(each):
            _require_no_memory(step)
            if spec.keep_filtered and isinstance(step, LatentValidated):
                step.options = replace(step.options, on_exhausted="flag")
                step.on_reject = "retry" if step.on_reject == "retry" else "flag"
        for model in _models(each):
            if model.source.startswith(OBJECT_PREFIX):
                raise SpecError(f"a model is a live object ({model.source}), which no other process has; name a folder, a file or a hub id")
            models.setdefault(model.kind, model)
    return Pipelines({kind: _edit_chain(each) for kind, each in chains.items()}, models)


def _edit_chain(chain: Compose) -> EditChain:
    edits = [step for step in steps_of(chain) if hasattr(step, "record_key") and not isinstance(step, LatentValidated)]
    edits = [step for step in edits if IMAGE in step.keys]
    if not edits:
        raise SpecError('a pipeline without an edit of "image", which is the key of each source; put e.g. DiffusionLocalInpaintd in it')
    painting = [step for step in edits if isinstance(step, DiffusionLocalInpaintd) and step.label_key == LABEL]
    record_keys = dict.fromkeys(edit.record_key(IMAGE) for edit in edits)
    value = painting[-1].inpaint.label_value if painting else 0
    return EditChain(chain, tuple(record_keys), edits[-1].mask_key, value if isinstance(value, int) else 0)


def require_keys(pipelines: Pipelines, words: Collection[str]) -> None:
    """Check that each key that a transform reads is in the samples, or written before.

    Args:
        pipelines: of the spec.
        words: keys that the entries of the datalist have in addition to image, label, id and group.

    Raises:
        SpecError: a key is missing; names the transform.
    """
    for each in pipelines.by_kind.values():
        for step, message in key_faults(each.chain, {IMAGE, LABEL, "id", "group", *words}):
            raise SpecError(f"{type(step).__name__}: {message}")


def _chain(spec: GenerateSpec, key: str, pipeline: Any) -> Compose:
    """The transforms that the value of a key of the spec describes."""
    from monai.bundle import ConfigParser

    from monai_diffaug import presets

    parser = ConfigParser({"imports": spec.imports, "definitions": dict(spec.definitions), key: deepcopy(pipeline)})
    try:
        parser.parse(True)
        content = parser.get_parsed_content(key)
        if isinstance(pipeline, Mapping) and "_target_" not in pipeline:
            options = dict(content)
            name = options.pop("preset", None)
            if name not in presets.__all__:
                hint = nearest_hint(str(name), presets.__all__) or f"; the presets are {', '.join(presets.__all__)}"
                raise SpecError(f"{key}: unknown preset {name!r}{hint}")
            return getattr(presets, name)(**{"prob": 1.0, **options})
    except SpecError:
        raise
    except Exception as error:  # MONAI wraps what the constructors raise
        raise SpecError(f"{key}: {reason_of(error)}") from error
    if isinstance(content, Compose):
        return content
    if not isinstance(content, list) or not content or not all(isinstance(step, Transform) for step in content):
        raise SpecError(f"{key} must be a list of transforms, a Compose or a preset, got {pipeline!r}")
    return Compose(content)


def steps_of(step: Any) -> Iterator[Any]:
    """A transform and all transforms inside it, in the order in which they run: an inner one comes before the one that holds it."""
    inner = list(step.transforms) if isinstance(step, Compose) else list(vars(step).values())
    for each in inner:
        if isinstance(each, Transform):
            yield from steps_of(each)
    yield step


def _require_no_memory(step: Any) -> None:
    """Refuse a transform whose result depends on the samples before it: then it would depend on the workers."""
    if isinstance(step, LatentValidated) and step.dynamic is not None:
        raise SpecError("LatentValidated: dynamic= depends on the order of the jobs; set min_dice= instead")
    if isinstance(step, (CachedRandomd, DrawVariantd)):
        raise SpecError(f"{type(step).__name__} keeps results between samples, which depend on the order of the jobs; leave it out")


def _derived_control(chain: Compose) -> Compose:
    """The pipeline for normal tissue: the same places, the prompt "normal tissue", no label, no validator that looks for a lesion."""
    steps = list(_control_steps(deepcopy(chain)))
    for needed in (PlaceMaskd, TextPromptd, DiffusionLocalInpaintd):
        if not any(isinstance(step, needed) for step in steps):
            raise SpecError(
                f"normal: the pipeline has no {needed.__name__}, so that of the controls does not follow from it; add e.g. control: "
                "{preset: controls, modality: ..., anatomy: ...}"
            )
    return Compose(steps)


def _control_steps(chain: Compose) -> Iterator[Any]:
    for step in chain.transforms:
        if isinstance(step, LatentValidated):
            if step.inpaint is None:
                continue
            step = step.inpaint
        if isinstance(step, Compose):
            yield from _control_steps(step)
        elif isinstance(step, TextPromptd):
            step.text = copy(step.text)
            step.text.pairs = [(place, (NORMAL,)) for place, _ in step.text.pairs]
            step.text.attributes = []
            yield step
        else:
            if isinstance(step, DiffusionLocalInpaintd):
                step.label_key, step.keep_original, step.prob = None, False, 1.0
            yield step


def _models(value: Any) -> Iterator[ModelSpec]:
    """Specs of all models of a transform, at any depth."""
    if isinstance(value, ModelSpec):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _models(each)
    elif type(value).__module__.startswith("monai_diffaug.") or isinstance(value, Compose):
        for each in getattr(value, "__dict__", {}).values():
            yield from _models(each)


def model_place(model: ModelSpec) -> Path | None:
    """File or folder of a model's weights; None for a hub id, whose revision identifies it."""
    if model.source == "tiny":
        return tiny_folder(model.kind)
    path = Path(model.source).expanduser()
    return path if path.exists() else None


def finding_of(chain: Compose, prompt: str) -> str:
    """The finding of the pipeline's ``TextPromptd`` that a prompt names; empty without one."""
    texts = [step.text for step in steps_of(chain) if isinstance(step, TextPromptd)]
    findings = {finding for text in texts for _, findings in text.pairs for finding in findings if finding in prompt}
    return max(sorted(findings), key=len, default="")
