from __future__ import annotations

import re

import numpy as np

from monai_diffaug.generate.report_charts import histogram_svg


def test_the_bars_of_both_groups_add_up_to_the_counts():
    rng = np.random.RandomState(0)
    values = {"accepted": rng.rand(70).tolist(), "filtered": rng.rand(30).tolist()}
    svg = histogram_svg("score", "", values)
    counted = {name: sum(int(n) for n in re.findall(rf"<title>{name}: (\d+) in", svg)) for name in values}
    assert counted == {"accepted": 70, "filtered": 30} and "n = 100" in svg


def test_bars_stay_inside_the_picture_and_one_value_is_drawn():
    for values in ([0.5], [1.0] * 9, list(range(1000))):
        svg = histogram_svg("time", "s", {"accepted": values})
        boxes = re.findall(r'x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg)
        assert boxes and all(float(x) >= 34 and float(x) + float(w) <= 360 and float(y) >= 8 for x, y, w, _ in boxes)
        assert all(abs(float(y) + float(h) - 136) < 0.2 for _, y, _, h in boxes)


def test_no_value_is_said_and_the_title_is_escaped():
    assert "no values" in histogram_svg("score", "", {})
    assert "<b>" not in histogram_svg("<b>", "<i>", {"accepted": [1.0]})
