from __future__ import annotations

from safetensors import SafetensorError

from monai_diffaug.commands.cli import _explain, main


def test_no_command_is_wrong_input(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_a_negative_value_without_an_equals_sign_is_explained(capsys):
    assert main(["augment", "scan.nii.gz", "--mask", "mask.nii.gz", "--prompt", "CT", "--out", "out", "--window", "-160,240"]) == 2
    assert "--window=-160,240" in capsys.readouterr().err


def test_weights_that_cannot_be_written_are_one_line_and_exit_code_1(capsys):
    assert _explain(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")) == 1
    assert capsys.readouterr().err == "monai-diffaug: error: Error while serializing: I/O error: No space left on device (os error 28)\n"
