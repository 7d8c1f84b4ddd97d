"""Every recorded setting gives what it gave before the layout changed.

Hashes hold for one kind of processor; ``python tests/recorded_edits.py --check tests/recorded_edits.json`` compares them. This test
compares means, deviations, counts and records within a tolerance, which holds on any processor.
"""

import json
from pathlib import Path

import pytest

from tests.recorded_edits import SETTINGS, apart, entry

RECORDED = json.loads(Path(__file__).with_name("recorded_edits.json").read_text(encoding="utf-8"))["settings"]
TOLERANCE = 0.02
# its score lies .003 from the threshold, so that another processor may decide otherwise
CLOSE_CALLS = {"validated dynamic threshold"}


def test_every_setting_is_recorded():
    assert SETTINGS.keys() == RECORDED.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RECORDED.keys() - CLOSE_CALLS))
def test_a_setting_gives_what_was_recorded(name):
    assert not apart(RECORDED[name]["summary"], entry(name)["summary"], TOLERANCE)


def test_a_result_beyond_the_tolerance_is_told():
    summary = RECORDED["inpaint int16, window, inner edge"]["summary"]
    other = {**summary, "image": {**summary["image"], "mean": summary["image"]["mean"] * 1.05}}
    assert not apart(summary, summary, TOLERANCE)
    assert apart(summary, other, TOLERANCE)
