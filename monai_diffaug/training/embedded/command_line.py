"""What the commands of the training recipes have in common: ``python -m monai_diffaug.training.RECIPE``."""

from __future__ import annotations

import argparse
import logging

import torch

__all__ = ["parsed"]


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of the shell, ``--threads`` among them and set; what the recipe logs goes to the terminal."""
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    return options
