"""Regional compilation: the blocks that a network repeats, each compiled once and used in all its places."""

from __future__ import annotations

import shutil

from torch import nn

__all__ = ["compile_regions"]

REGIONS = ("BasicTransformerBlock", "ResnetBlock2D")
RECOMPILATIONS = 64  # each width of a block is a recompilation of one code object; dynamo's default of 8 would stop in silence


def compile_regions(network: nn.Module) -> int:
    """Send the transformer and residual blocks of a diffusers network through ``torch.compile``, in place; names of weights stay.

    The first call of each shape compiles, which takes from seconds to minutes; later calls are faster.

    Returns:
        the number of blocks.

    Raises:
        RuntimeError: no C++ compiler, which TorchInductor needs.
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
