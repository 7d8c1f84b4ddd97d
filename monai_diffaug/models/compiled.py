"""Regional compilation: the repeated blocks of a network are compiled once and used in all places."""

from __future__ import annotations

import shutil

from torch import nn

__all__ = ["compile_regions"]

REGIONS = ("BasicTransformerBlock", "ResnetBlock2D")
RECOMPILATIONS = 64  # each width of a block recompiles one code object; after dynamo's default of 8 it silently runs uncompiled


def compile_regions(network: nn.Module) -> int:
    """Compile the transformer and residual blocks of a diffusers network with ``torch.compile``, in place; returns their number.

    Weights keep their names. The first call with each shape compiles for seconds to minutes; later calls are faster.

    Raises:
        RuntimeError: there is no C++ compiler, which TorchInductor needs.
    """
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise RuntimeError("compile=True needs a C++ compiler (g++ or clang++) on the PATH; install one, or use compile=False")
    import torch._dynamo

    limit = torch._dynamo.config
    limit.recompile_limit = max(limit.recompile_limit, RECOMPILATIONS)
    blocks = [module for module in network.modules() if type(module).__name__ in REGIONS]
    for block in blocks:
        block.compile(dynamic=False)
    return len(blocks)
