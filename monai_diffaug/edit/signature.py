"""Constructor arguments by name: an unknown option names the nearest right one, and ``repr`` shows what differs from the defaults."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

__all__ = ["MADE_AS", "Described", "is_option_group", "named_options", "nearest_name", "option_group"]

T = TypeVar("T")
P = ParamSpec("P")
MADE_AS = "_made_as"  # attribute of a ``Described`` instance: its ``repr``
LONGEST_LIST = 4  # items of a list that are shown
LONGEST_TEXT = 80  # characters of a text that are shown


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The name that a misspelt one probably means: a close match, else the only one that has it as a part; None without either.

    >>> nearest_name("guidance", ["guidance_scale", "strength"])
    'guidance_scale'
    >>> nearest_name("steps", ["num_inference_steps", "strength"])
    'num_inference_steps'
    """
    candidates = list(names)
    nearest = get_close_matches(name, candidates, n=1) or [each for each in candidates if name in each.split("_")]
    return nearest[0] if len(nearest) == 1 else None


def named_options(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator of a function or constructor: TypeError with the nearest name for an option that it does not have."""
    parameters = inspect.signature(function).parameters.values()
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and each.name != "self"]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> T:
        for name in () if takes_any else options:
            if name not in names:
                caller = type(args[0]).__name__ if function.__name__ == "__init__" else function.__name__
                nearest = nearest_name(name, names)
                hint = f"did you mean {nearest}?" if nearest else f"its options are {', '.join(names)}"
                raise TypeError(f"{caller}: unexpected option {name!r}; {hint}")
        return function(*args, **options)

    return checked


def option_group(cls: type[T]) -> type[T]:
    """Decorator of a frozen dataclass of options with defaults: unknown options are named, ``repr`` shows what differs from them."""

    def shown(self: Any) -> str:
        plain = type(self)()
        return _call(type(self).__name__, *({each.name: getattr(side, each.name) for each in fields(self)} for side in (self, plain)))

    constructor = cls.__init__
    setattr(cls, "__init__", named_options(constructor))  # noqa: B010 - mypy allows no assignment to a method
    setattr(cls, "__repr__", shown)  # noqa: B010
    setattr(cls, "_option_group", True)  # noqa: B010
    return cls


def is_option_group(cls: Any) -> bool:
    """Whether a class was decorated by ``option_group``."""
    return inspect.isclass(cls) and is_dataclass(cls) and hasattr(cls, "_option_group")


class Described:
    """Mixin of the public transforms: unknown options are named, ``repr`` is the call that made the instance, without defaults.

    >>> class Blur(Described):
    ...     def __init__(self, sigma: float = 1.0, *, prob: float = 1.0) -> None:
    ...         self.sigma = sigma
    >>> Blur(2.0), Blur(prob=0.5), Blur()
    (Blur(sigma=2.0), Blur(prob=0.5), Blur())
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            setattr(cls, "__init__", _recorded(named_options(cls.__init__)))  # noqa: B010

    def __repr__(self) -> str:
        return str(getattr(self, MADE_AS, f"{type(self).__name__}()"))


def _recorded(build: Callable[..., None]) -> Callable[..., None]:
    """A constructor that stores its call as text; of several in a row (base classes) the outermost counts."""
    signature = inspect.signature(build)
    defaults = {each.name: each.default for each in signature.parameters.values()}

    @functools.wraps(build)
    def recorded(self: Any, *args: Any, **options: Any) -> None:
        is_outermost = MADE_AS not in vars(self)
        if is_outermost:
            object.__setattr__(self, MADE_AS, "")
        build(self, *args, **options)
        if is_outermost:
            arguments = dict(list(signature.bind(self, *args, **options).arguments.items())[1:])
            object.__setattr__(self, MADE_AS, _call(type(self).__name__, arguments, defaults))

    return recorded


def _call(name: str, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """A call as text, without the arguments that equal their defaults."""
    shown = [f"{each}={_short(value)}" for each, value in arguments.items() if not _equal(value, defaults.get(each))]
    return f"{name}({', '.join(shown)})"


def _equal(value: Any, default: Any) -> bool:
    try:
        return isinstance(value, bool) is isinstance(default, bool) and bool(value == default)
    except (RuntimeError, ValueError):  # arrays
        return False


def _short(value: Any) -> str:
    """A value as text of one line: plain values and options in full, arrays by their shape, other objects by their class or name."""
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST_TEXT else f"{value[: LONGEST_TEXT - 3]}...")
    if value is None or isinstance(value, (bool, int, float, Described, torch.device)) or is_option_group(type(value)):
        return repr(value)
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, (list, tuple)):
        items = [_short(each) for each in value[:LONGEST_LIST]] + ["..."] * (len(value) > LONGEST_LIST)
        text = ", ".join(items)
        return f"[{text}]" if isinstance(value, list) else f"({text}{',' * (len(value) == 1)})"
    if isinstance(value, Mapping):
        pairs = [f"{_short(key)}: {_short(each)}" for key, each in list(value.items())[:LONGEST_LIST]]
        return f"{{{', '.join(pairs + ['...'] * (len(value) > LONGEST_LIST))}}}"
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"<{type(value).__name__} {tuple(value.shape)}>"
    return f"<{getattr(value, '__qualname__', type(value).__qualname__).removeprefix('<').removesuffix('>')}>"
