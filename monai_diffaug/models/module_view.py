"""A second root module that shares all weights with the first, but has other processors: two users of one network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from copy import copy
from functools import partial
from types import MethodType
from typing import Any

from torch import nn

__all__ = ["ModuleView"]

DICTS = (dict, OrderedDict)


class ModuleView:
    """A copy of the modules from the root to some named modules; all other modules and all weights are shared with the root.

    Changes inside shared modules (a loaded adapter, its scale, new weights) have an effect in both. A change of a copied module itself
    (a replaced child, a hook, an attribute) has an effect in one of them only; then ``is_current`` is False, and a new view is needed.

    Args:
        root: read, not changed.
        names: of modules below it, as in ``named_modules``.

    Attributes:
        module: the second root.

    Raises:
        ValueError: the ``forward`` of a module to copy was replaced by a function that calls the original module.
    """

    def __init__(self, root: nn.Module, names: Iterable[str]) -> None:
        self._paths = _paths_to(names)
        originals = [root.get_submodule(path) for path in self._paths]
        self._states = [_state(module) for module in originals]
        copies = {path: _copied(module, path) for path, module in zip(self._paths, originals, strict=True)}
        for path, module in copies.items():
            if path:
                parent, _, name = path.rpartition(".")
                copies[parent]._modules[name] = module
        self.module: Any = copies[""]

    def is_current(self, root: nn.Module) -> bool:
        """Whether the copied modules of the root are still as they were when they were copied."""
        try:
            states = [_state(root.get_submodule(path)) for path in self._paths]
        except AttributeError:  # a module was removed
            return False
        return all(len(a) == len(b) and all(map(_is, a, b)) for a, b in zip(states, self._states, strict=True))


def _paths_to(names: Iterable[str]) -> list[str]:
    """Names of all modules from the root ("", the first) to the named ones; a parent comes before its children."""
    parts = [name.split(".") for name in names]
    return sorted({".".join(each[:end]) for each in parts for end in range(len(each) + 1)})


def _state(module: nn.Module) -> list[Any]:
    """Attributes of a module, and the items of its dicts (submodules, weights, hooks): the same objects until one is replaced.

    A method or partial call is represented by its function: it may reference the module, which the state must not keep alive.
    """
    state: list[Any] = []
    for name, value in vars(module).items():
        if type(value) in DICTS:
            state += [name, *(part for item in value.items() for part in item)]
        else:
            state += [name, value.__func__ if isinstance(value, MethodType) else value.func if isinstance(value, partial) else value]
    return state


def _is(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, (str, int)) and a == b)


def _copied(module: nn.Module, path: str) -> Any:
    """A copy of a module with the same children and weights in new dicts; methods bound to the module are bound to the copy."""
    twin: Any = copy(module)
    for name, value in list(vars(twin).items()):
        if type(value) in DICTS:
            vars(twin)[name] = type(value)(value)
        elif isinstance(value, MethodType) and value.__self__ is module:
            vars(twin)[name] = MethodType(value.__func__, twin)
        elif isinstance(value, partial) and any(each is module for each in value.args):  # as accelerate's hooks wrap ``forward``
            vars(twin)[name] = partial(value.func, *(twin if each is module else each for each in value.args), **value.keywords)
        elif name == "forward" or (name == "_diffusers_hook" and value.hooks):
            raise ValueError(
                f"the forward of the network's part {path or type(module).__name__!r} was replaced ({value!r}) by a function that calls "
                "the original part, so the network cannot get a second set of processors; take the replacement (a wrapper, a hook) out"
            )
    return twin
