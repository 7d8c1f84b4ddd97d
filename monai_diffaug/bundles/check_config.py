"""Check the config of a MONAI Bundle without running it: one fault a line, where MONAI raises a page of traceback.

Only transforms are made (their constructors check their options); no model, data set or engine is made, and nothing is loaded
or trained. Import statements in the config are executed and simple expressions evaluated: check only what you would run.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import pydoc
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from monai_diffaug.bundles.folders import own_modules
from monai_diffaug.bundles.key_flow import key_faults
from monai_diffaug.bundles.syntax import Fault, line_table, read_config

__all__ = ["Fault", "Report", "check_bundle"]

METADATA = "metadata.json"
META_KEY = "_meta_"
NOT_ARGUMENTS = {"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"}
# what an argument of a transform may call without loading, training or writing anything; further calls leave it unmade
HARMLESS_CALLS = re.compile(
    r"(bool|dict|float|int|len|list|max|min|range|round|set|str|tuple|Path|pathlib\.Path)"
    r"|torch\.(device|tensor|cuda\.is_available)|os\.(path\.\w+|environ\.get)|(np|numpy)\.(arange|array|linspace|ones|zeros|eye)"
    r"|.*\.(format|join|lower|replace|rstrip|split|strip|upper)"
)


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        faults: in the order of the file.
        components: number of components (``_target_``) in the config, without the disabled ones.
    """

    faults: tuple[Fault, ...]
    components: int


@dataclass
class _Check:
    """One check: the parser, where each id stands, what was found so far."""

    parser: Any
    lines: Mapping[str, tuple[str, int]]
    first_file: str
    faults: list[Fault] = field(default_factory=list)
    faulty: set[str] = field(default_factory=set)
    located: dict[str, Any] = field(default_factory=dict)
    imported: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, message: str) -> None:
        """Note a fault at an id; its line is the id's own or its nearest parent's."""
        name = where
        while name and name not in self.lines:
            name = name.rpartition("::")[0]
        file, line = self.lines.get(name, (self.first_file, 0))
        fault = Fault(file, line, where, " ".join(message.split()))
        self.faulty.add(where)
        if fault not in self.faults:
            self.faults.append(fault)

    @property
    def items(self) -> dict[str, Any]:
        """All items of the parsed config by id, without the metadata."""
        found: dict[str, Any] = self.parser.ref_resolver.items
        return {id_: item for id_, item in found.items() if id_.partition("::")[0] != META_KEY}


def check_bundle(files: Sequence[Path | str]) -> Report:
    """Check the config that ``python -m monai.bundle run --config_file FILES`` would run.

    Args:
        files: one or more JSON or YAML files; each overrides those before it, as in MONAI. A ``metadata.json`` beside the first
            is read as well.

    Raises:
        ValueError: no file is given.
        MissingExtraError: PyYAML is not installed.
    """
    paths = [Path(file) for file in files]
    if not paths:
        raise ValueError("give at least one config file")
    unread = [fault for path in paths for fault in read_config(path)]
    if unread:
        return Report(tuple(unread), 0)
    with warnings.catch_warnings(), own_modules(paths[0]):
        warnings.simplefilter("ignore")
        return _check_config(paths)


def _check_config(paths: Sequence[Path]) -> Report:
    from monai.bundle import ConfigParser

    import monai_diffaug

    for name in monai_diffaug.__all__:
        getattr(monai_diffaug, name)
    check = _Check(ConfigParser({}), {}, str(paths[0]))
    for path in paths:
        check.lines = {**check.lines, **line_table(path)}
    try:
        check.parser.read_config([str(path) for path in paths])
        metadata = paths[0].parent / METADATA
        if metadata.is_file() and not read_config(metadata):
            check.parser.read_meta(str(metadata))
        _check_macros(check)
        check.parser.parse(reset=True)
    except (KeyError, ValueError, IndexError, TypeError, OSError) as error:
        check.add("", f"cannot be read: {_reason(error)} (an overlay with ids such as 'a::b' comes after the file it overrides)")
        return Report(tuple(check.faults), 0)
    _check_texts(check)
    components = {id_: item for id_, item in check.items.items() if type(item).__name__ == "ConfigComponent" and not item.is_disabled()}
    for id_, item in components.items():
        _check_component(check, id_, item)
    _check_transforms(check, components)
    order = {path: position for position, path in enumerate(map(str, paths))}
    faults = sorted(check.faults, key=lambda fault: (order.get(fault.file, 0), fault.line))
    return Report(tuple(faults), len(components))


def _check_macros(check: _Check) -> None:
    """Each ``%file.yaml::id`` and ``%id`` must be there; those that are not become None, so that the rest can be checked."""
    from monai.bundle import ConfigParser

    for id_, text in _texts(check.parser.get()):
        if not text.startswith("%"):
            continue
        path, target = ConfigParser.split_path_id(ConfigParser.resolve_relative_ids(id_, text)[1:])
        if path and not Path(path).is_file():
            check.add(id_, f"file not found: {path}")
        elif path and read_config(Path(path)):
            check.add(id_, str(read_config(Path(path))[0]))
        elif target not in (ConfigParser(ConfigParser.load_config_file(path)) if path else check.parser):
            check.add(id_, f"%{target} is not defined{f' in {path}' if path else ''}")
        else:
            continue
        check.parser[id_] = None


def _texts(config: Any, id_: str = "") -> Iterator[tuple[str, str]]:
    """(id, text) of every string in a config."""
    if isinstance(config, str):
        yield id_, config
    elif isinstance(config, (dict, list)):
        for key, value in config.items() if isinstance(config, dict) else enumerate(config):
            yield from _texts(value, f"{id_}::{key}" if id_ else str(key))


def _check_texts(check: _Check) -> None:
    """Imports, references and the syntax and names of expressions; nothing but the imports is executed."""
    texts = [(id_, item.get_config()) for id_, item in check.items.items() if isinstance(item.get_config(), str)]
    for id_, text in texts:
        if text.startswith("$"):
            _check_import(check, id_, text)
    for id_, text in texts:
        refs = check.parser.ref_resolver.match_refs_pattern(text)
        for ref in refs:
            if ref and ref not in check.parser.ref_resolver.items:
                check.add(id_, f"@{ref} is not defined{_nearest(ref, check.items, '@')}")
        if text.startswith("$") and not _import_of(text):
            _check_expression(check, id_, text)


def _import_of(text: str) -> ast.Import | ast.ImportFrom | None:
    try:
        body = ast.parse(text[1:].strip()).body
    except SyntaxError:
        return None
    return body[0] if body and isinstance(body[0], (ast.Import, ast.ImportFrom)) else None


def _check_import(check: _Check, id_: str, text: str) -> None:
    from monai.utils import optional_import

    statement = _import_of(text)
    if statement is None:
        return
    alias = statement.names[0]
    module = alias.name if isinstance(statement, ast.Import) else str(statement.module)
    check.imported[alias.asname or alias.name] = module
    found, there = optional_import(module, name="" if isinstance(statement, ast.Import) else alias.name)
    if not there:
        try:
            found()
        except ImportError as error:
            check.add(id_, f"cannot {text[1:].strip()}: {str(error).splitlines()[0]}")


def _expression_tree(check: _Check, text: str) -> ast.expr:
    """The tree of an expression whose references stand as the name ``__ref``."""
    resolver = check.parser.ref_resolver
    return ast.parse(resolver.id_matcher.sub("__ref", resolver.normalize_id(text[1:])).strip(), mode="eval").body


def _check_expression(check: _Check, id_: str, text: str) -> None:
    try:
        tree = _expression_tree(check, text)
    except SyntaxError as error:
        check.add(id_, f"syntax error in the expression {text!r}: {error.msg}")
        return
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    known = {"__ref", *bound, *dir(builtins), *check.parser.globals, *check.imported}
    for name in dict.fromkeys(node.id for node in names):
        if name not in known:
            check.add(id_, f"name {name!r} is not imported; add `- $import {name}` to imports")


def _check_component(check: _Check, id_: str, item: Any) -> None:
    """The class must exist, and take the arguments that are given."""
    target = item.get_config()["_target_"]
    if not isinstance(target, str) or target.startswith(("$", "@")):
        return
    path = item.resolve_module_name()
    try:
        found = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        check.add(f"{id_}::_target_", f"cannot import {target}: {error.value}")
        return
    imports = {module.partition(".")[0] for module in check.imported.values()}
    if found is None:
        check.add(f"{id_}::_target_", f"unknown class {target!r}{_nearest_class(target)}")
    elif "." not in target and path.startswith("monai_diffaug.") and "monai_diffaug" not in imports:
        check.add(f"{id_}::_target_", f"the short name {target!r} needs `- $import monai_diffaug` in imports")
    else:
        check.located[id_] = found
        _check_arguments(check, id_, found, item.get_config())


def _check_arguments(check: _Check, id_: str, found: Any, config: Mapping[str, Any]) -> None:
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        return
    from monai.utils import CompInitMode

    given = [name for name in config if name not in NOT_ARGUMENTS]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    name_of_class = getattr(found, "__name__", str(found))
    for name in given:
        if name not in named and not takes_any:
            check.add(f"{id_}::{name}", f"unknown argument {name!r} of {name_of_class}{_nearest(name, named)}")
    mode = config.get("_mode_", "default")
    if isinstance(mode, str) and not mode.startswith(("$", "@")) and mode not in (modes := [str(m.value) for m in CompInitMode]):
        check.add(f"{id_}::_mode_", f"unknown mode {mode!r}; use {', '.join(modes)}")
    if mode != "default":
        return
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in given:
            check.add(id_, f"missing argument {name!r} of {name_of_class}")


def _check_transforms(check: _Check, components: Mapping[str, Any]) -> None:
    """Make each transform that needs nothing but transforms and plain values, and follow the keys through each chain."""
    from monai.transforms import Compose, Transform

    transforms = [id_ for id_ in components if inspect.isclass(found := check.located.get(id_)) and issubclass(found, Transform)]
    needs = {id_: _needs(check, id_) for id_ in transforms}
    safe = {id_ for id_ in transforms if _only_makes(check, needs[id_] | {id_}, set(transforms))}
    failed = set(check.faulty)
    made: dict[str, Any] = {}
    for id_ in transforms:
        if id_ not in safe or any(_is_within(fault, part) for fault in failed for part in needs[id_] | {id_}):
            continue
        try:
            made[id_] = check.parser.get_parsed_content(id_)
        except Exception as error:
            failed.add(id_)
            check.add(id_, f"{check.located[id_].__name__}: {_reason(error)}")
            continue
        for message in _source_faults(made[id_]):
            check.add(id_, f"{type(made[id_]).__name__}: {message}")
    names = {id(transform): id_ for id_, transform in made.items()}
    inner = {part for id_ in made for part in needs[id_] if isinstance(made[id_], Compose)}
    for id_, transform in made.items():
        if isinstance(transform, Compose) and id_ not in inner:
            for guilty, message in key_faults(transform, _data_keys(check, id_)):
                check.add(names.get(id(guilty), id_), f"{type(guilty).__name__}: {message}")


def _is_within(fault: str, part: str) -> bool:
    return fault == part or fault.startswith(f"{part}::")


def _needs(check: _Check, id_: str) -> set[str]:
    """Ids that have to be resolved before ``id_``, at any depth; a circle is a fault."""
    resolver = check.parser.ref_resolver
    seen: set[str] = set()
    waiting: list[tuple[str, tuple[str, ...]]] = [(id_, (id_,))]
    while waiting:
        current, way = waiting.pop()
        item = resolver.items.get(current)
        if item is None:
            continue
        for ref in resolver.find_refs_in_config(item.get_config(), current):
            if ref in way:
                check.add(id_, f"circular reference {' -> '.join((*way[way.index(ref) :], ref))}")
            elif ref and ref not in seen:
                seen.add(ref)
                waiting.append((ref, (*way, ref)))
    return seen


def _only_makes(check: _Check, parts: set[str], transforms: set[str]) -> bool:
    """Whether resolving the parts makes transforms alone and evaluates nothing that could load, train or write."""
    for part in parts:
        item = check.parser.ref_resolver.items.get(part)
        if item is None:
            return False
        config = item.get_config()
        if isinstance(config, dict) and "_target_" in config and part not in transforms and not item.is_disabled():
            return False
        if isinstance(config, str) and config.startswith("$") and not _import_of(config) and not _is_harmless(check, config):
            return False
    return True


def _is_harmless(check: _Check, text: str) -> bool:
    tree = _expression_tree(check, text)
    deferred = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Lambda) for part in ast.walk(node.body)}
    now = [node for node in ast.walk(tree) if id(node) not in deferred]
    if any(isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ" for node in now):
        return False  # set where the bundle runs, by torchrun for one
    return all(HARMLESS_CALLS.fullmatch(ast.unparse(node.func)) for node in now if isinstance(node, ast.Call))


def _data_keys(check: _Check, compose_id: str) -> set[str] | None:
    """Keys that all items have, where a data set with this transform lists its items in the config; else None."""
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
    """Model sources of a transform that can be no model: neither embedded, nor a file or folder, nor a hub id."""
    from monai_diffaug.errors import ModelSourceError
    from monai_diffaug.models.registry import OBJECT_PREFIX, ModelSpec
    from monai_diffaug.models.sources import check_model_source

    held = list(vars(transform).values())
    ours = [value for value in held if type(value).__module__.startswith("monai_diffaug.")]
    held += [inner for value in ours for inner in getattr(value, "__dict__", {}).values()]
    for spec in held:
        if isinstance(spec, ModelSpec) and not spec.source.startswith(OBJECT_PREFIX):
            try:
                check_model_source(spec.kind, spec.source)
            except ModelSourceError as error:
                yield str(error)


def _reason(error: BaseException) -> str:
    """What the constructor said, without MONAI's wrapping."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"


def _nearest(name: str, names: Mapping[str, Any] | set[str], prefix: str = "") -> str:
    found = get_close_matches(name, list(names), n=1)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def _nearest_class(target: str) -> str:
    """The nearest class or function: in the module of a full path, else in all of MONAI and this package."""
    module_name, _, name = target.rpartition(".")
    if not module_name:
        modules = [module for key, module in sys.modules.items() if key.startswith("monai")]
        return _nearest(name, {key for module in modules for key, value in vars(module).items() if inspect.isclass(value)})
    try:
        module = pydoc.locate(module_name)
    except pydoc.ErrorDuringImport:
        module = None
    return f"; there is no module {module_name}" if module is None else _nearest(name, set(dir(module)))
