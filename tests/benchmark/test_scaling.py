"""The line through costs."""

from __future__ import annotations

import pytest

from monai_diffaug.benchmark.scaling import fit_line


def test_a_line_is_found_again() -> None:
    slope, intercept, fit = fit_line([8, 16, 24], [0.5 + 0.1 * n for n in (8, 16, 24)])
    assert slope == pytest.approx(0.1) and intercept == pytest.approx(0.5) and fit == pytest.approx(1.0)


def test_what_is_no_line_is_told_from_one() -> None:
    assert fit_line([1, 2, 3, 4], [1, 4, 9, 16])[2] < 0.99
