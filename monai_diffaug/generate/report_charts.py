"""Histograms of the report as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

__all__ = ["histogram_svg"]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 360, 170, 34, 34, 8
MOST_BINS = 20


def histogram_svg(title: str, unit: str, values: Mapping[str, Sequence[float]]) -> str:
    """Stacked histogram of some groups of values; groups are coloured by the CSS classes ``bar-GROUP``.

    Args:
        title: what is counted, for the axis.
        unit: of the values; may be empty.
        values: group -> finite values.

    >>> svg = histogram_svg("score", "", {"accepted": [0.5, 0.6, 0.9]})
    >>> svg.count("<rect"), "score" in svg
    (3, True)
    """
    everything = np.concatenate([np.asarray(group, float) for group in values.values()]) if values else np.empty(0)
    caption = escape(f"{title} ({unit})" if unit else title)
    if everything.size == 0:
        return f'<figure><p class="none">no values</p><figcaption>{caption}</figcaption></figure>'
    bins = int(np.clip(np.sqrt(everything.size) * 1.5, 5, MOST_BINS))
    edges = np.histogram_bin_edges(everything, bins)
    counts = {name: np.histogram(group, edges)[0] for name, group in values.items()}
    highest = max(int(np.sum(list(counts.values()), axis=0).max()), 1)
    step = (WIDTH - LEFT - 6) / bins
    scale = (HEIGHT - BOTTOM - TOP) / highest
    base = HEIGHT - BOTTOM
    bars, below = [], np.zeros(bins)
    for name, numbers in counts.items():
        for k, number in enumerate(numbers):
            if number:
                x, height = LEFT + k * step, number * scale
                tip = escape(f"{name}: {number} in {edges[k]:.3g} to {edges[k + 1]:.3g}")
                bars.append(
                    f'<rect class="bar-{escape(name)}" x="{x:.1f}" y="{base - (below[k] + number) * scale:.1f}" width="{step - 1:.1f}" '
                    f'height="{height:.1f}"><title>{tip}</title></rect>'
                )
        below += numbers
    texts = [f'<text x="{LEFT - 4}" y="{y}" text-anchor="end">{number}</text>' for y, number in ((TOP + 8, highest), (base, 0))]
    ticks = ((edges[0], LEFT, "start"), ((edges[0] + edges[-1]) / 2, (LEFT + WIDTH - 6) / 2, "middle"), (edges[-1], WIDTH - 6, "end"))
    texts += [f'<text x="{x:.1f}" y="{base + 13}" text-anchor="{anchor}">{_short(value)}</text>' for value, x, anchor in ticks]
    axis = f'<path d="M{LEFT} {TOP}V{base}H{WIDTH - 6}" class="axis"/>'
    median = escape(f"median {_short(float(np.median(everything)))}, n = {everything.size}")
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="histogram of {caption}">{axis}{"".join(bars)}{"".join(texts)}'
        f"</svg><figcaption>{caption}: {median}</figcaption></figure>"
    )


def _short(value: float) -> str:
    """Three digits, without an exponent up to a million."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
