"""The spec of a run: a MONAI config with a pipeline, the number of results per source, the share of controls and the seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from monai_diffaug.bundles.check_config import check_bundle
from monai_diffaug.bundles.check_state import nearest_hint
from monai_diffaug.generate.export_run import FORMATS

__all__ = ["FOLDER", "GenerateSpec", "SpecError", "read_spec"]

FOLDER = "folder"
MOST_COPIES = 1000  # the name of a job has three digits for the copy
MAX_SEED = 2**32 - 1


class SpecError(ValueError):
    """The spec of a run is wrong; one line per fault."""


@dataclass(frozen=True)
class GenerateSpec:
    """The spec of a run, in plain values.

    Attributes:
        pipeline: list of transforms as a MONAI config (``_target_``), or ``{"preset": name, option: value, ...}``. It edits "image", and
            reads and paints "label".
        copies: results per source image, 1 to 1000.
        normal: share of controls, in [0, 1]: normal tissue repainted, with no lesion added.
        control: pipeline of the controls, like ``pipeline``, e.g. ``{"preset": "controls", ...}``. None takes ``pipeline`` with the finding
            "normal tissue", and without label and validator.
        seed: uint32.
        format: of the results: "folder", or an export that is made of the finished run as well.
        keep_filtered: also keep the files of results that the validator rejects.
        threads: of torch per worker. It is a part of the spec, because sums in another order differ in the last bits.
        imports: import statements, as in a MONAI Bundle.
        definitions: values that the pipeline refers to, e.g. ``@definitions::window``.
    """

    pipeline: Any
    copies: int = 1
    normal: float = 0.0
    control: Any = None
    seed: int = 0
    format: str = FOLDER
    keep_filtered: bool = False
    threads: int = 1
    imports: list[str] = field(default_factory=list)
    definitions: Mapping[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """The spec as a dictionary that JSON can hold."""
        return asdict(self)

    @property
    def sha256(self) -> str:
        """Hash of everything that the results depend on; the format of an export does not count."""
        content = {key: value for key, value in self.to_plain().items() if key != "format"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_spec(path: Path | str) -> GenerateSpec:
    """Read and check a YAML or JSON file; transforms are constructed, nothing is loaded.

    Raises:
        SpecError: the file cannot be read, an unknown key, a value out of range, or a fault in the pipeline.
        MissingExtraError: PyYAML is not installed.
    """
    from monai.bundle import ConfigParser

    path = Path(path)
    report = check_bundle([path])
    if report.faults:
        raise SpecError("\n".join(str(fault) for fault in report.faults))
    parser = ConfigParser()
    parser.read_config(str(path))
    content = {key: value for key, value in parser.get().items() if key != "_meta_"}
    try:
        return spec_of_config(content)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def spec_of_config(content: Mapping[str, Any]) -> GenerateSpec:
    """The spec of a config in memory, e.g. ``{"pipeline": {"preset": "diffaug", "modality": "ultrasound"}, "copies": 2}``.

    Raises:
        SpecError: see ``read_spec``.

    >>> spec_of_config({"pipeline": {"preset": "diffaug", "modality": "ultrasound"}, "copys": 2})
    Traceback (most recent call last):
    ...
    monai_diffaug.generate.spec.SpecError: unknown key 'copys'; did you mean copies?
    """
    from monai_diffaug.generate.pipeline import build_pipelines

    known = GenerateSpec.__dataclass_fields__
    for key in content:
        if key not in known:
            raise SpecError(f"unknown key {key!r}{nearest_hint(str(key), known) or '; the keys are ' + ', '.join(known)}")
    if "pipeline" not in content:
        raise SpecError("no pipeline; give a list of transforms, or {preset: diffaug, modality: ..., finding: ...}")
    for key, least, most in (("copies", 1, MOST_COPIES), ("seed", 0, MAX_SEED), ("threads", 1, 1024)):
        value = content.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise SpecError(f"{key} must be a whole number from {least} to {most}, got {value!r}")
    normal = content.get("normal", 0.0)
    if isinstance(normal, bool) or not isinstance(normal, (int, float)) or not 0 <= normal <= 1:
        raise SpecError(f"normal is the share of controls and must be in [0, 1], got {normal!r}")
    for key, kind, name in (("keep_filtered", bool, "true or false"), ("format", str, "a text"), ("imports", list, "a list")):
        if key in content and not isinstance(content[key], kind):
            raise SpecError(f"{key} must be {name}, got {content[key]!r}")
    if content.get("format", FOLDER) not in (FOLDER, *FORMATS):
        raise SpecError(f"format must be one of {FOLDER}, {', '.join(FORMATS)}, got {content['format']!r}")
    try:
        json.dumps(content)
    except (TypeError, ValueError) as error:
        raise SpecError(f"the spec must hold text, numbers, lists and mappings alone: {error}") from error
    spec = GenerateSpec(**{**content, "normal": float(normal)})
    build_pipelines(spec)
    return spec
