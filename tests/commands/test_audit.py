from __future__ import annotations

from monai_diffaug.commands import cli
from monai_diffaug.generate.export_run import export_run
from monai_diffaug.generate.report_page import write_report
from monai_diffaug.generate.run_folder import read_run
from tests.generate.run_folders import small_run


def test_a_clean_run_ends_with_zero_and_its_figures(tmp_path, capsys):
    maker = small_run(tmp_path)
    export_run(maker.run, "monai", tmp_path / "out")
    assert cli.main(["audit", str(maker.run), "--export", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0] == "7 finished jobs: 6 accepted, 1 filtered (14.3% refused)" and text[1] == "  1 filtered: score 0.31 < 0.5"
    assert text[2].startswith("5 lesions compared with the real ones: ") and text[-1] == "ok: no fault"


def test_faults_end_with_one_and_a_line_each(tmp_path, capsys):
    maker = small_run(tmp_path)
    for record in maker.records[:3]:
        (maker.run / "results" / record.job / "mask.png").unlink()
    assert cli.main(["audit", str(maker.run), "--most", "2", "--no-copies", "--quiet"]) == 1
    text = capsys.readouterr().out.splitlines()
    assert text[0] == f"file: {maker.records[0].job}: mask.png is missing" and text[2] == "file: 1 more" and len(text) == 3


def test_withdrawal_lists_then_deletes_and_writes_the_report_again(tmp_path, capsys):
    maker = small_run(tmp_path)
    write_report(read_run(maker.run))
    export_run(maker.run, "webdataset", tmp_path / "out")
    command = ["audit", str(maker.run), "--withdraw", "images/b.png", "--export", str(tmp_path / "out")]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert text.count("images/b.png is its source") == 2 and text.count("images/b.png is its donor") == 1
    assert text.count("export again") == 3 and "3 results come from images/b.png; --delete removes them" in text
    assert len(read_run(maker.run).records) == 7
    assert cli.main([*command, "--delete"]) == 0
    assert "removed 3 results" in capsys.readouterr().out
    assert len(read_run(maker.run).records) == 4
    assert not [path.name for path in (maker.run / "results").iterdir() if path.name.startswith("b-")]
    report = (maker.run / "report.html").read_text()
    assert report.count("<article") == 4 and "images/b.png" not in report


def test_wrong_input_is_one_line(tmp_path, capsys):
    assert cli.main(["audit", str(tmp_path)]) == 2
    maker = small_run(tmp_path)
    assert cli.main(["audit", str(maker.run), "--delete"]) == 2
    assert cli.main(["audit", str(maker.run), "--export", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and "--withdraw SOURCE_ID" in errors[1] and "no folder of `monai-diffaug export`" in errors[2]
