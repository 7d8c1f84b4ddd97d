from __future__ import annotations

from monai_diffaug.commands.cli import main


def test_the_demo_names_the_extra_that_is_missing(tmp_path, monkeypatch, capsys):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "nilearn" else found(name, *a))
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    assert "pip install monai_diffaug[demo]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
