from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_diffaug.errors import MissingExtraError
from monai_diffaug.training.lora import add_adapters, merged


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.other = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.other(self.to_q(x))


def adapted() -> tuple[Attention, torch.Tensor]:
    torch.manual_seed(0)
    network = Attention().requires_grad_(False)
    before = network(torch.ones(1, 6))
    add_adapters(network, ["to_q"], rank=2)
    return network, before


def test_fresh_adapters_change_nothing_and_alone_are_trained():
    network, before = adapted()
    assert torch.allclose(network(torch.ones(1, 6)), before)
    assert {name.split(".")[1] for name, p in network.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_the_merged_copy_computes_the_same_with_plain_layers():
    network, before = adapted()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    plain, x = merged(network), torch.ones(1, 6)
    assert type(plain.to_q) is nn.Linear and set(plain.state_dict()) == set(Attention().state_dict())
    assert torch.allclose(plain(x), network(x), atol=1e-6) and not torch.allclose(plain(x), before)
    assert not any(p.requires_grad for p in plain.parameters())


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"monai_diffaug\[train\]"):
        add_adapters(Attention(), ["to_q"], 2)
