"""Model sources: "tiny" (embedded), a local file or folder, or a hub id ``org/name@revision``."""

from __future__ import annotations

import re
from pathlib import Path

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.registry import tiny_folder

__all__ = ["check_model_source"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def check_model_source(kind: str, source: str) -> None:
    """Refuse a source that can be no model, before anything is loaded.

    Raises:
        ModelSourceError: neither "tiny", an existing file or folder, nor a hub id.
    """
    if source == "tiny":
        if not tiny_folder(kind).is_dir():
            raise ModelSourceError(f"the embedded {kind} is not at {tiny_folder(kind)}; reinstall monai_diffaug")
    elif not Path(source).exists() and not HUB_ID.fullmatch(source):
        raise ModelSourceError(f"unknown {kind} source {source!r}; use 'tiny', an existing file or folder, or a hub id 'org/name@revision'")
