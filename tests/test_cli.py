from __future__ import annotations

import subprocess
import sys

from monai_diffaug.cli import main


def test_no_command_is_wrong_input(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_the_help_imports_neither_torch_nor_monai():
    lines = (
        "import sys",
        "from monai_diffaug.cli import main",
        "try: main(['--help'])",
        "except SystemExit: pass",
        "print({'torch', 'monai'} & set(sys.modules))",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()") and "augment" in done.stdout
