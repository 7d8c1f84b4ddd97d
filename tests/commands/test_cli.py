from __future__ import annotations

import subprocess
import sys

from safetensors import SafetensorError

from monai_diffaug.commands.cli import _explain, main


def test_no_command_is_wrong_input(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_the_help_imports_neither_torch_nor_monai():
    lines = (
        "import sys",
        "from monai_diffaug.commands.cli import main",
        "try: main(['--help'])",
        "except SystemExit: pass",
        "print({'torch', 'monai'} & set(sys.modules))",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()") and "augment" in done.stdout


def test_weights_that_cannot_be_written_are_one_line_and_exit_code_1(capsys):
    assert _explain(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")) == 1
    assert capsys.readouterr().err == "monai-diffaug: error: Error while serializing: I/O error: No space left on device (os error 28)\n"
