"""Check the config of a MONAI Bundle without running it: one line per fault, where MONAI raises a page of traceback.

Nothing of the config is run: classes are looked up in a few installed packages and their signatures read, expressions are parsed, and only
this package's own transforms and option groups are made, of plain values, so that their constructors check their options. With
``make=True`` MONAI's transforms are constructed too, the config's imports executed and simple expressions evaluated: for configs that you
would run.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import inspect
import pydoc
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_diffaug.bundles.check_state import ConfigCheck, expression_tree, import_statement, nearest_hint, reason_of
from monai_diffaug.bundles.folders import own_folders, own_modules
from monai_diffaug.bundles.macros import macro_faults
from monai_diffaug.bundles.syntax import Fault, line_table, read_config
from monai_diffaug.bundles.trusted_packages import exists, is_trusted, locate_trusted

__all__ = ["Fault", "Report", "check_bundle"]

METADATA = "metadata.json"
LONGEST_SHOWN = 200  # characters of an expression in a message
NOT_ARGUMENTS = {"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"}


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        faults: in the order of the files.
        components: number of components (``_target_``) in the config, without the disabled ones.
        notes: files of data that the config names and that are not there; an override on the command line may name others.
    """

    faults: tuple[Fault, ...]
    components: int
    notes: tuple[str, ...] = ()


def check_bundle(files: Sequence[Path | str], *, make: bool = False) -> Report:
    """Check the config that ``python -m monai.bundle run --config_file FILES`` would run.

    Args:
        files: one or more JSON or YAML files; each overrides those before it, as in MONAI. A ``metadata.json`` next to the
            first is read as well.
        make: construct MONAI's transforms too, so that their constructors check their options. This runs code that the config names.

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
    with warnings.catch_warnings(), own_modules(paths[0]) if make else contextlib.nullcontext():
        warnings.simplefilter("ignore")
        return _check_config(paths, make)


def _check_config(paths: Sequence[Path], make: bool) -> Report:
    from monai.bundle import ConfigParser

    import monai_diffaug
    from monai_diffaug.bundles.dry_run import check_plain, check_transforms, missing_data

    for name in monai_diffaug.__all__:
        getattr(monai_diffaug, name)  # in the command line, names are imported at first use
    check = ConfigCheck(ConfigParser({}), {}, str(paths[0]), make=make, folders=own_folders(paths[0]))
    for path in paths:
        check.lines = {**check.lines, **line_table(path)}
    try:
        check.parser.read_config([str(path) for path in paths])
        metadata = paths[0].parent / METADATA
        if metadata.is_file() and not read_config(metadata):
            check.parser.read_meta(str(metadata))
        for id_, message in macro_faults(check.parser.get()):
            check.add(id_, message)
        if check.faults:
            return Report(tuple(check.faults), 0)
        _check_macros(check)
        check.parser.parse(reset=True)
    except (KeyError, ValueError, IndexError, TypeError, OSError, RecursionError) as error:
        check.add("", f"cannot be read: {reason_of(error)} (an overlay with ids such as 'a::b' comes after the file it overrides)")
        return Report(tuple(check.faults), 0)
    _check_texts(check)
    components = {id_: item for id_, item in check.items.items() if type(item).__name__ == "ConfigComponent" and not item.is_disabled()}
    for id_, item in components.items():
        _check_component(check, id_, item)
    plain = check_plain(check, components)
    if make:
        check_transforms(check, components)
    order = {path: position for position, path in enumerate(map(str, paths))}
    faults = sorted(check.faults, key=lambda fault: (order.get(fault.file, 0), fault.line))
    notes = tuple(f"{id_}: no file {path} here; name yours by --{id_} FILE" for id_, path in missing_data(check, plain))
    return Report(tuple(faults), len(components), notes)


def _check_macros(check: ConfigCheck) -> None:
    """Each ``%file.yaml::id`` and ``%id`` must exist; those that do not become None, so that the rest can be checked."""
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


def _check_texts(check: ConfigCheck) -> None:
    """Check imports, references, and the syntax and names of expressions."""
    texts = [(id_, item.get_config()) for id_, item in check.items.items() if isinstance(item.get_config(), str)]
    for id_, text in texts:
        if text.startswith("$"):
            _check_import(check, id_, text)
    for id_, text in texts:
        refs = check.parser.ref_resolver.match_refs_pattern(text)
        for ref in refs:
            if ref and ref not in check.parser.ref_resolver.items:
                check.add(id_, f"@{ref} is not defined{nearest_hint(ref, check.items, '@')}")
        if text.startswith("$") and not import_statement(text):
            _check_expression(check, id_, text)


def _check_import(check: ConfigCheck, id_: str, text: str) -> None:
    from monai.utils import optional_import

    statement = import_statement(text)
    if statement is None:
        return
    alias = statement.names[0]
    module = alias.name if isinstance(statement, ast.Import) else str(statement.module)
    check.imported[alias.asname or alias.name] = module
    if not check.make:
        _check_name(check, id_, module, "" if isinstance(statement, ast.Import) else alias.name)
        return
    imported, is_found = optional_import(module, name="" if isinstance(statement, ast.Import) else alias.name)
    if not is_found:
        try:
            imported()
        except ImportError as error:
            check.add(id_, f"cannot {text[1:].strip()}: {str(error).splitlines()[0]}")


def _check_name(check: ConfigCheck, id_: str, module: str, name: str) -> None:
    """The module of an import statement must exist; the name in it only where it may be looked up."""
    if not exists(module, check.folders):
        check.add(id_, f"cannot import {module}: there is no module {module.partition('.')[0]}")
    elif is_trusted(module):
        try:
            is_there = locate_trusted(f"{module}.{name}" if name else module) is not None
        except pydoc.ErrorDuringImport as error:
            check.add(id_, f"cannot import {module}: {error.value}")
            return
        if not is_there:
            check.add(id_, f"cannot import {name or module}{f' from {module}' if name else ''}")


def _check_expression(check: ConfigCheck, id_: str, text: str) -> None:
    try:
        tree = expression_tree(check, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
        check.add(id_, f"syntax error in the expression {shown!r}: {getattr(error, 'msg', None) or 'too long or too deeply nested'}")
        return
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    known = {"__ref", *bound, *dir(builtins), *check.parser.globals, *check.imported}
    for name in dict.fromkeys(node.id for node in names):
        if name not in known:
            check.add(id_, f"name {name!r} is not imported; add `- $import {name}` to imports")


def _check_component(check: ConfigCheck, id_: str, item: Any) -> None:
    """The class must exist and accept the arguments of the config."""
    target = item.get_config()["_target_"]
    if not isinstance(target, str) or target.startswith(("$", "@")):
        return
    path = item.resolve_module_name()
    if not check.make and "." in path and not is_trusted(path):
        if not exists(path, check.folders):
            check.add(f"{id_}::_target_", f"unknown class {target!r}; there is no module {path.partition('.')[0]}")
        return  # not imported: its signature is not known
    try:
        located = pydoc.locate(path) if check.make else locate_trusted(path) if is_trusted(path) else None
    except pydoc.ErrorDuringImport as error:
        check.add(f"{id_}::_target_", f"cannot import {target}: {error.value}")
        return
    imports = {module.partition(".")[0] for module in check.imported.values()}
    if located is None:
        check.add(f"{id_}::_target_", f"unknown class {target!r}{_nearest_class(target)}")
    elif "." not in target and path.startswith("monai_diffaug.") and "monai_diffaug" not in imports:
        check.add(f"{id_}::_target_", f"the short name {target!r} needs `- $import monai_diffaug` in imports")
    elif _is_namesake(target, located, item.get_config()):
        check.add(f"{id_}::_target_", f"the short name {target!r} is a class of MONAI; write monai_diffaug.{target}")
    else:
        check.located[id_] = located
        _check_arguments(check, id_, located, item.get_config())


def _is_namesake(target: str, located: Any, config: Mapping[str, Any]) -> bool:
    """Whether a short name means a class of MONAI, but the arguments fit only the class of that name in this package."""
    import monai_diffaug

    ours = getattr(monai_diffaug, target, None) if "." not in target else None
    arguments = {name for name in config if name not in NOT_ARGUMENTS}
    return ours not in (None, located) and arguments <= _parameters(ours).keys() and not arguments <= _parameters(located).keys()


def _parameters(located: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class or function; none if it has no signature."""
    try:
        return inspect.signature(located).parameters
    except (TypeError, ValueError):
        return {}


def _check_arguments(check: ConfigCheck, id_: str, located: Any, config: Mapping[str, Any]) -> None:
    from monai.utils import CompInitMode

    parameters = _parameters(located)
    if not parameters:
        return

    arguments = [name for name in config if name not in NOT_ARGUMENTS]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    name_of_class = getattr(located, "__name__", str(located))
    for name in arguments:
        if name not in named and not takes_any:
            check.add(f"{id_}::{name}", f"unknown argument {name!r} of {name_of_class}{nearest_hint(name, named)}")
    mode = config.get("_mode_", "default")
    if isinstance(mode, str) and not mode.startswith(("$", "@")) and mode not in (modes := [str(m.value) for m in CompInitMode]):
        check.add(f"{id_}::_mode_", f"unknown mode {mode!r}; use {', '.join(modes)}")
    if mode != "default":
        return
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in arguments:
            check.add(id_, f"missing argument {name!r} of {name_of_class}")


def _nearest_class(target: str) -> str:
    """The nearest class or function, in the module of a full path, else in MONAI and this package."""
    module_name, _, name = target.rpartition(".")
    if not module_name:
        modules = [module for key, module in sys.modules.items() if key.startswith("monai")]
        return nearest_hint(name, {key for module in modules for key, value in vars(module).items() if inspect.isclass(value)})
    try:
        module = locate_trusted(module_name)
    except (pydoc.ErrorDuringImport, ValueError):
        module = None
    return f"; there is no module {module_name}" if module is None else nearest_hint(name, set(dir(module)))
