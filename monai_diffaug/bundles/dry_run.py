"""Construct the transforms of a config, so that their constructors check their options; nothing is loaded, trained or written.

``check_plain`` makes this package's classes of plain values alone, ``check_transforms`` (``make=True``) those of MONAI too.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_diffaug.bundles.check_state import ConfigCheck, expression_tree, import_statement, reason_of
from monai_diffaug.bundles.key_flow import key_faults
from monai_diffaug.bundles.plain_values import PlainValues

__all__ = ["check_plain", "check_transforms", "missing_data"]

DATA_SUFFIXES = (".json", ".csv")

# calls that an argument of a transform may hold: they load, train and write nothing; a transform with another call is not constructed
HARMLESS_CALLS = re.compile(
    r"(bool|dict|float|int|len|list|max|min|range|round|set|str|tuple|Path|pathlib\.Path)"
    r"|torch\.(device|tensor|cuda\.is_available)|os\.(path\.\w+|environ\.get)|(np|numpy)\.(arange|array|linspace|ones|zeros|eye)"
    r"|.*\.(format|join|lower|replace|rstrip|split|strip|upper)"
)


def check_transforms(check: ConfigCheck, components: Mapping[str, Any]) -> None:
    """Construct each transform and option group that needs only transforms, option groups and plain values, and follow the keys.

    Args:
        check: the faults are added to it.
        components: id -> item of each component of the config.
    """
    from monai.transforms import Compose, Transform

    from monai_diffaug.edit.signature import is_option_group

    classes = {id_: check.located.get(id_) for id_ in components}
    groups = [id_ for id_, cls in classes.items() if is_option_group(cls)]
    transforms = [id_ for id_, cls in classes.items() if inspect.isclass(cls) and issubclass(cls, Transform)]
    needs = {id_: _needs(check, id_) for id_ in (*groups, *transforms)}
    safe = {id_ for id_ in needs if _only_constructs(check, needs[id_] | {id_}, set(needs))}
    failed = set(check.faulty)
    made: dict[str, Any] = {}
    for id_ in (*sorted(groups, key=len, reverse=True), *transforms):  # nested groups first: a fault is reported at the innermost id
        if id_ not in safe or any(_is_within(fault, part) for fault in failed for part in needs[id_] | {id_}):
            continue
        try:
            made[id_] = check.parser.get_parsed_content(id_)
        except Exception as error:
            failed.add(id_)
            check.add(id_, f"{check.located[id_].__name__}: {reason_of(error)}")
            continue
        if id_ not in groups:
            for message in _source_faults(made[id_]):
                check.add(id_, f"{type(made[id_]).__name__}: {message}")
    inner = {part for id_ in made for part in needs[id_] if isinstance(made[id_], Compose)}
    _follow_keys(check, made, inner)


def check_plain(check: ConfigCheck, components: Mapping[str, Any]) -> PlainValues:
    """The same from plain values alone: only this package's classes are made, and nothing of the config is run.

    Args:
        check: the faults are added to it.
        components: id -> item of each component of the config.
    """
    from monai.transforms import Compose

    from monai_diffaug.edit.signature import is_option_group

    plain = PlainValues(check)
    for id_ in [*components, *check.items]:
        plain.of(id_)
    for id_, transform in plain.made.items():
        if type(transform).__module__.startswith("monai_diffaug.") and not is_option_group(type(transform)):
            for message in _source_faults(transform):
                check.add(id_, f"{type(transform).__name__}: {message}")
    chains = {id_: chain for id_, chain in plain.made.items() if isinstance(chain, Compose)}
    ids = {id(step): id_ for id_, step in chains.items()}
    _follow_keys(check, plain.made, {ids[id(step)] for chain in chains.values() for step in chain.transforms if id(step) in ids})
    return plain


def _follow_keys(check: ConfigCheck, made: Mapping[str, Any], inner: set[str]) -> None:
    from monai.transforms import Compose

    ids = {id(transform): id_ for id_, transform in made.items()}
    for id_, transform in made.items():
        if isinstance(transform, Compose) and id_ not in inner:
            for step, message in key_faults(transform, _data_keys(check, id_)):
                check.add(ids.get(id(step), id_), f"{type(step).__name__}: {message}")


def missing_data(check: ConfigCheck, plain: PlainValues) -> Iterator[tuple[str, str]]:
    """(id, path) of each top-level text that names a datalist or table which does not exist, relative to the working directory."""
    for id_, item in check.items.items():
        if "::" in id_ or not isinstance(item.get_config(), str) or id_ in check.faulty:
            continue
        path = plain.of(id_)
        if isinstance(path, str) and path.lower().endswith(DATA_SUFFIXES) and not Path(path).is_file():
            yield id_, path


def _is_within(fault: str, part: str) -> bool:
    return fault == part or fault.startswith(f"{part}::")


def _needs(check: ConfigCheck, id_: str) -> set[str]:
    """Ids that have to be resolved before ``id_``, at any depth; a circular reference is a fault."""
    resolver = check.parser.ref_resolver
    needs: set[str] = set()
    waiting: list[tuple[str, tuple[str, ...]]] = [(id_, (id_,))]
    while waiting:
        current, way = waiting.pop()
        item = resolver.items.get(current)
        if item is None:
            continue
        for ref in resolver.find_refs_in_config(item.get_config(), current):
            if ref in way:
                check.add(id_, f"circular reference {' -> '.join((*way[way.index(ref) :], ref))}")
            elif ref and ref not in needs:
                needs.add(ref)
                waiting.append((ref, (*way, ref)))
    return needs


def _only_constructs(check: ConfigCheck, parts: set[str], constructible: set[str]) -> bool:
    """Whether resolving the parts constructs only these components and evaluates nothing that could load, train or write."""
    for part in parts:
        item = check.parser.ref_resolver.items.get(part)
        if item is None:
            return False
        config = item.get_config()
        if isinstance(config, dict) and config.get("_mode_", "default") != "default":
            return False  # "debug" starts a debugger
        if isinstance(config, dict) and "_target_" in config and part not in constructible and not item.is_disabled():
            return False
        if isinstance(config, str) and config.startswith("$") and not import_statement(config) and not _is_harmless(check, config):
            return False
    return True


def _is_harmless(check: ConfigCheck, text: str) -> bool:
    """Whether an expression calls nothing but ``HARMLESS_CALLS``; the bodies of lambdas do not count."""
    tree = expression_tree(check, text)
    deferred = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Lambda) for part in ast.walk(node.body)}
    nodes = [node for node in ast.walk(tree) if id(node) not in deferred]
    if any(isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ" for node in nodes):
        return False  # set only where the bundle runs, e.g. by torchrun
    return all(HARMLESS_CALLS.fullmatch(ast.unparse(node.func)) for node in nodes if isinstance(node, ast.Call))


def _data_keys(check: ConfigCheck, compose_id: str) -> set[str] | None:
    """Keys that all items have, if a data set with this transform lists its items in the config; else None."""
    for id_, item in check.items.items():
        config = item.get_config()
        if not isinstance(config, dict) or "data" not in config or "_target_" not in config:
            continue
        if config.get("transform") != f"@{compose_id}" and f"{id_}::transform" != compose_id:
            continue
        data = config["data"]
        if isinstance(data, str) and data.startswith("@"):
            data = check.parser.get(data[1:])
        if isinstance(data, list) and data and all(isinstance(entry, dict) for entry in data):
            return set.intersection(*(set(entry) for entry in data))
    return None


def _source_faults(transform: Any) -> Iterator[str]:
    """Model sources of a transform that are neither embedded, nor a file or folder, nor a hub id."""
    from monai_diffaug.errors import ModelSourceError
    from monai_diffaug.models.registry import OBJECT_PREFIX
    from monai_diffaug.models.sources import check_model_source

    for spec in dict.fromkeys(_specs(transform)):
        if not spec.source.startswith(OBJECT_PREFIX):
            try:
                check_model_source(spec.kind, spec.source)
            except ModelSourceError as error:
                yield str(error)


def _specs(value: Any, *, is_inner: bool = False) -> Iterator[Any]:
    """The model specs in the attributes of one of this package's objects; inner dictionary transforms are components themselves."""
    from monai.transforms import MapTransform

    from monai_diffaug.models.registry import ModelSpec

    if isinstance(value, ModelSpec):
        yield value
    elif type(value).__module__.startswith("monai_diffaug.") and not (is_inner and isinstance(value, MapTransform)):
        for each in getattr(value, "__dict__", {}).values():
            yield from _specs(each, is_inner=True)
