from __future__ import annotations

from monai_diffaug.commands import cli
from tests.generate.run_folders import small_run


def test_the_page_is_written_where_it_is_named(tmp_path, capsys):
    maker = small_run(tmp_path)
    assert cli.main(["report", str(maker.run)]) == 0
    assert f"{maker.run / 'report.html'}: 7 jobs" in capsys.readouterr().out
    other = tmp_path / "page.html"
    assert cli.main(["report", str(maker.run), "--out", str(other), "--per-group", "1", "--panel-px", "48", "--zoom", "4", "--quiet"]) == 0
    assert other.read_text().count("<article") == 2  # one accepted, one borderline


def test_wrong_input_is_one_line(tmp_path, capsys):
    maker = small_run(tmp_path)
    for options in (
        [str(tmp_path)],
        [str(maker.run), "--out", str(tmp_path)],
        [str(maker.run), "--zoom", "0.5"],
        [str(maker.run), "--panel-px", "9"],
    ):
        assert cli.main(["report", *options]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and "is a folder; name a file" in errors[1]
