from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_diffaug.models.module_view import ModuleView

NAMES = ["blocks.0.attention", "blocks.1.attention"]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.processor = nn.Linear(3, 3), torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        return self.processor(self.project(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain, self.attention, self.rest = 1.0, Attention(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.rest(self.attention(x))


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def root() -> Any:
    torch.manual_seed(0)
    return Root().requires_grad_(False)


X = torch.linspace(-1, 1, 6).reshape(2, 3)


def scaled(module: nn.Module, x: Tensor) -> Tensor:
    return 2 * type(module).forward(module, x)


def sparse(root: Any) -> None:
    root.blocks[1].rest = nn.Sequential(root.blocks[1].rest, nn.Tanh())


def hooked(root: Any) -> None:
    root.blocks[0].register_forward_hook(lambda module, args, result: result + 1)


def changed_gain(root: Any) -> None:
    root.blocks[0].gain = 3.0


def new_projection(root: Any) -> None:
    root.blocks[0].attention.project = nn.Linear(3, 3)


def new_block(root: Any) -> None:
    root.blocks[1] = Block()


def new_method(root: Any) -> None:
    root.blocks[0].forward = MethodType(scaled, root.blocks[0])


def wrapped(root: Any) -> None:
    root.forward = partial(scaled, root)


@pytest.mark.parametrize("change", [sparse, hooked, changed_gain, new_projection, new_block, new_method, wrapped])
def test_a_change_of_a_copied_module_is_detected_and_is_in_the_next_view(root: Any, change: Callable[[Any], None]) -> None:
    view = ModuleView(root, NAMES)
    assert view.is_current(root) and torch.equal(view.module(X), root(X))
    before = root(X)
    change(root)
    assert not view.is_current(root) and not torch.equal(root(X), before)
    assert torch.equal(ModuleView(root, NAMES).module(X), root(X))


def test_a_change_of_a_shared_module_has_an_effect_at_once(root: Any) -> None:
    view = ModuleView(root, NAMES)
    before = root(X)
    root.blocks[0].rest.weight = nn.Parameter(torch.zeros(3, 3))
    root.blocks[1].attention.project.register_forward_hook(lambda module, args, result: result + 1)
    assert view.is_current(root) and torch.equal(view.module(X), root(X)) and not torch.equal(root(X), before)


def test_a_change_of_the_view_does_not_change_the_root(root: Any) -> None:
    before, names = root(X), [name for name, _ in root.named_modules()]
    twin = ModuleView(root, NAMES).module
    twin.blocks[0].attention.processor = nn.Linear(3, 3)
    twin.blocks[1].gain, twin.more = 0.0, nn.Linear(3, 3)
    twin.register_forward_hook(lambda module, args, result: result + 1)
    assert not torch.equal(twin(X), before) and torch.equal(root(X), before)
    assert [name for name, _ in root.named_modules()] == names


def test_replaced_methods_of_the_root_call_the_modules_of_the_view(root: Any) -> None:
    new_method(root)
    wrapped(root)
    twin = ModuleView(root, NAMES).module
    for block in twin.blocks:
        block.attention.processor = torch.zeros_like
    assert not torch.equal(twin(X), root(X)) and torch.equal(twin(X), 2 * twin.blocks[1](twin.blocks[0](X)))


def test_a_forward_that_calls_the_original_module_is_refused(root: Any) -> None:
    block = root.blocks[1]
    plain = block.forward
    block.forward = lambda x: 2 * plain(x)
    with pytest.raises(ValueError, match=r"'blocks\.1' was replaced.*take the replacement"):
        ModuleView(root, NAMES)


def test_a_hook_of_diffusers_that_calls_the_original_module_is_refused(root: Any) -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    registry = HookRegistry.check_if_exists_or_initialize(root.blocks[0])
    registry.register_hook(ModelHook(), "mine")
    with pytest.raises(ValueError, match=r"'blocks\.0' was replaced"):
        ModuleView(root, NAMES)
    registry.remove_hook("mine")
    assert torch.equal(ModuleView(root, NAMES).module(X), root(X))


def test_a_view_does_not_keep_its_root_alive() -> None:
    root: Any = Root()
    wrapped(root)
    view, reference = ModuleView(root, NAMES), weakref.ref(root)
    del root
    gc.collect()
    assert reference() is None and view.module(X).shape == X.shape
