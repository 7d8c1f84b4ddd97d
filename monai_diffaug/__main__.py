"""``python -m monai_diffaug`` is the command ``monai-diffaug``."""

from __future__ import annotations

import sys

from monai_diffaug.commands.cli import main

sys.exit(main())
