from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from monai_diffaug.generate.report_page import pick_groups, write_report
from monai_diffaug.generate.run_folder import read_run
from tests.generate.run_folders import Maker, small_run

CHROMIUM = shutil.which("chromium")
browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt install chromium")


def page_of(maker: Maker, **options) -> str:
    return write_report(read_run(maker.finish()), **options).read_text(encoding="utf-8")


def browse(page: Path, fragment: str = "") -> str:
    """The page as Chromium shows it after its script has run."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=3000",
        "--dump-dom",
        f"{page.as_uri()}{fragment}",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def visible(dom: str) -> list[str]:
    cards = re.findall(r"<article [^>]*>", dom)
    return [re.search(r'data-job="([^"]*)"', card)[1] for card in cards if " hidden" not in card]


def test_one_page_holds_everything_and_reaches_nothing_outside(tmp_path):
    text = page_of(small_run(tmp_path))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["index.jsonl", "report.html", "results", "run.json"]
    assert text.count("data:image/jpeg") == 6 and text.count("<article") == 7
    outside = [value for value in re.findall(r'(?:src|href)="([^"]*)"', text) if not value.startswith("data:")]
    assert outside == [] and "http:" not in text and "https:" not in text and "@import" not in text
    assert "default-src 'none'" in text


def test_counts_by_finding_and_reason(tmp_path):
    maker = small_run(tmp_path)
    maker.result("images/c.png", 2, state="filtered", reason="score 0.31 < 0.5", finding="cyst")
    (maker.run / "failed").mkdir()
    failure = {"job": "x-00000000-000", "error": "MemoryError: 3 GB", "attempts": 2, "traceback": ""}
    (maker.run / "failed" / "x-00000000-000.json").write_text(json.dumps(failure))
    rows = re.findall(r"<tr>(<td.*?)</tr>", page_of(maker))
    cells = [re.findall(r">([^<]*)</td>", row) for row in rows]
    assert ["lesion", "5", "1", "17%"] in cells and ["cyst", "0", "1", "100%"] in cells and ["control", "1", "0", "0%"] in cells
    assert ["score 0.31 &lt; 0.5", "filtered", "2"] in cells and ["MemoryError: 3 GB", "failed", "1"] in cells


def test_a_figure_that_is_missing_or_not_finite_is_left_out(tmp_path):
    maker = small_run(tmp_path)
    maker.result("images/c.png", 2, figures={"seconds": float("nan")}, edit={"score": float("inf")})
    text = page_of(maker)
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text) and "inf" not in re.findall(r'data-score="([^"]*)"', text)


def test_the_gallery_is_limited_per_group_and_spread_over_the_run(tmp_path):
    maker = Maker(tmp_path)
    sources = [maker.source(f"s{k:02}") for k in range(4)]
    for k in range(40):
        maker.result(sources[k % 4], k, edit={"score": 0.5 + k / 100})
    run = read_run(maker.finish())
    groups = pick_groups(run.records, 6)
    assert {name: len(some) for name, some in groups.items()} == {"accepted": 6, "borderline": 4, "filtered": 0}
    assert max(r.edit["score"] for r in groups["borderline"]) < min(r.edit["score"] for r in run.records if r not in groups["borderline"])
    jobs = [record.job for record in run.records]
    assert [jobs.index(record.job) // 10 for record in groups["accepted"]] == sorted(jobs.index(r.job) // 10 for r in groups["accepted"])
    assert page_of(maker, per_group=6, panel_px=32).count("<article") == 10
    with pytest.raises(ValueError, match="at least 1"):
        write_report(run, per_group=0)


def test_a_damaged_picture_and_a_missing_source_leave_the_rest_of_the_page(tmp_path):
    maker = small_run(tmp_path)
    (maker.run / "results" / maker.records[0].job / "image.png").write_bytes(b"no picture")
    (tmp_path / "images/c.png").unlink()
    text = page_of(maker)
    assert text.count("data:image/jpeg") == 4 and "corrupt or truncated" in text and "no such file" in text


def test_a_run_without_a_result_has_a_page(tmp_path):
    maker = Maker(tmp_path)
    maker.source("a")
    text = page_of(maker)
    assert "no values" in text and "<article" not in text


HOSTILE = '</script><script>document.title="taken"</script><img src=x onerror="document.title=\'taken\'">" onclick="x'


def test_all_texts_are_escaped(tmp_path):
    maker = small_run(tmp_path)
    maker.result("images/c.png", 2, prompt=HOSTILE, finding=HOSTILE, reason=HOSTILE, state="filtered", donor=HOSTILE)
    text = page_of(maker)
    assert text.count("<script>") == 1 and "<img src=x" not in text and '" onclick="x' not in text


@browser
def test_texts_of_records_do_not_run_in_a_browser(tmp_path):
    maker = small_run(tmp_path)
    maker.result("images/c.png", 2, prompt=HOSTILE, finding=HOSTILE, reason=HOSTILE, state="filtered", donor=HOSTILE)
    page_of(maker)
    dom = browse(maker.run / "report.html")
    assert "<title>Synthetic images: run</title>" in dom
    assert "8 of 8" in dom  # the script of the page has run


@browser
def test_the_gallery_filters_and_sorts_in_a_browser(tmp_path):
    maker = small_run(tmp_path)
    for k, record in enumerate(maker.records):  # scores against the order of the names
        path = maker.run / "results" / record.job / "record.json"
        content = json.loads(path.read_text())
        content["edit"]["score"] = 0.9 - 0.05 * k
        path.write_text(json.dumps(content))
    page_of(maker)
    page = maker.run / "report.html"
    assert len(visible(browse(page))) == 7
    assert visible(browse(page, "#finding=control")) == [next(r.job for r in maker.records if r.kind == "control")]
    assert visible(browse(page, "#words=0.31")) == [next(r.job for r in maker.records if r.state == "filtered")]
    assert visible(browse(page, "#sort=score")) == [record.job for record in reversed(maker.records)]


@browser
def test_the_page_has_pictures_on_the_screen(tmp_path):
    import numpy as np
    from PIL import Image

    maker = small_run(tmp_path, shape=(48, 40, 6))
    page_of(maker)
    target = tmp_path / "screen.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={target}", "--window-size=1400,1800"]
    subprocess.run([*command, (maker.run / "report.html").as_uri()], capture_output=True, timeout=120, check=True)
    pixels = np.array(Image.open(target).convert("RGB")).astype(int)
    bars = (np.abs(pixels - (47, 125, 79)).max(axis=-1) < 12).sum()  # the green of accepted results
    blue = ((pixels[..., 2] > 200) & (pixels[..., 0] < 90)).sum()  # the difference: darker
    assert bars > 3000 and blue > 300
