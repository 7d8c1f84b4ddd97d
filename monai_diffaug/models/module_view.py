"""A second module on the parts of a first one, with some parts of its own: two users of one network, each with its own processors."""

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
    """``module`` is a second root whose modules on the ways to the named ones are its own; all other modules and all weights are shared.

    What happens in a shared part (an adapter put into it, a scale of one, new weights) is seen in both. What is put on a way itself (a
    module replaced, a hook, an attribute) is in one of them only: ``is_current`` then says False, and a new view has it.

    Args:
        root: it is read, not changed.
        names: of modules below it, as ``named_modules`` gives them.

    Raises:
        ValueError: the ``forward`` of a module on a way was replaced by a function that cannot be told to call another module.
    """

    def __init__(self, root: nn.Module, names: Iterable[str]) -> None:
        self._ways = _ways_to(names)
        originals = [root.get_submodule(way) for way in self._ways]
        self._states = [_state(module) for module in originals]
        own = {way: _copied(module, way) for way, module in zip(self._ways, originals, strict=True)}
        for way, module in own.items():
            if way:
                above, _, name = way.rpartition(".")
                own[above]._modules[name] = module
        self.module: Any = own[""]

    def is_current(self, root: nn.Module) -> bool:
        """On the ways nothing was put into the root, or taken out of it, since."""
        try:
            found = [_state(root.get_submodule(way)) for way in self._ways]
        except AttributeError:  # a way is no more
            return False
        return all(len(a) == len(b) and all(map(_is, a, b)) for a, b in zip(found, self._states, strict=True))


def _ways_to(names: Iterable[str]) -> list[str]:
    """Names of the modules on the ways, the root's "" first, each behind the one that holds it."""
    parts = [name.split(".") for name in names]
    return sorted({".".join(each[:end]) for each in parts for end in range(len(each) + 1)})


def _state(module: nn.Module) -> list[Any]:
    """What a module holds, its dicts (submodules, weights, hooks) opened: the same objects as long as nothing was exchanged.

    Of methods and partial calls the function alone: they may hold the module, and whoever keeps the state must not keep that alive.
    """
    held: list[Any] = []
    for name, value in vars(module).items():
        if type(value) in DICTS:
            held += [name, *(part for item in value.items() for part in item)]
        else:
            held += [name, value.__func__ if isinstance(value, MethodType) else value.func if isinstance(value, partial) else value]
    return held


def _is(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, (str, int)) and a == b)


def _copied(module: nn.Module, way: str) -> Any:
    """A module with dicts of its own on the same children and weights; methods bound to the given one are bound to it. Not compiled."""
    own: Any = copy(module)
    for name, value in list(vars(own).items()):
        if type(value) in DICTS:
            vars(own)[name] = type(value)(value)
        elif isinstance(value, MethodType) and value.__self__ is module:
            vars(own)[name] = MethodType(value.__func__, own)
        elif isinstance(value, partial) and any(each is module for each in value.args):  # as accelerate's hooks wrap ``forward``
            vars(own)[name] = partial(value.func, *(own if each is module else each for each in value.args), **value.keywords)
        elif name == "forward" or (name == "_diffusers_hook" and value.hooks):
            raise ValueError(
                f"the forward of the network's part {way or type(module).__name__!r} was replaced ({value!r}) by what calls the part as it "
                "was: the network cannot be given processors beside its own; take the replacement (a wrapper, a hook) out"
            )
    return own
