"""Markdown tables of the figures of a run; the same JSON always gives the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai_diffaug.studies.markers import replace_between

__all__ = ["GOALS", "MARKERS", "insert_tables", "render", "render_readme"]

MARKERS = "benchmark"

RIVALS = {
    "a": "a loop of diffusers' pipeline over all slices, PIL",
    "b": "the same over slices with a mask, tensors, prompt encoded once",
    "c": "one batched call of the pipeline",
}
# (model, side of a slice, share of empty slices, rival): least gain that is the goal
GOALS: Mapping[tuple[str, int, float, str], float] = {
    ("embedded", 128, 0.0, "b"): 1.4,
    ("embedded", 64, 0.0, "b"): 2.8,
    ("embedded", 128, 0.5, "a"): 3.0,
    ("embedded", 64, 0.5, "a"): 6.0,
    ("25 M UNet", 64, 0.0, "b"): 1.4,
    ("Stable Diffusion 1.5 size", 512, 0.0, "a"): 2.5,
    ("Stable Diffusion 1.5 size", 512, 0.0, "c"): 1.5,
}
OVER_BARE_GOAL = 1.05
DIFFERENT = "results differ: not timed"
MODEL_AND_SLICE = {"model": "{model}", "slice": "{size_px} px"}


def render_readme(figures: Mapping[str, Any]) -> str:
    """The Markdown between the markers of a page."""
    machine, amount = figures["machine"], figures["amount"]
    device = machine["gpu"] if figures["device"] == "cuda" else f"{machine['processor']}, one thread"
    head = (
        f"Measured on {device} with `monai-diffaug evaluate speed` (torch {machine['torch']}, diffusers {machine['diffusers']}; "
        f"medians of {amount['rounds']} interleaved rounds, in brackets their 95 % interval). Results are compared before they are timed: "
        "float32 results differ by at most 2e-5 in the model's range [-1, 1]; those of (a), which are 8 bit, by half a grey level more."
    )
    tables = [table(figures) for table in (_edits, _roi, _peak, _shares, _masks, _steps, _lines, _levers)]
    return "\n\n".join([head, *(table for table in tables if table)]) + "\n"


def insert_tables(text: str, figures: Mapping[str, Any]) -> str:
    """The text with the tables between its markers.

    Raises:
        ValueError: the text has no markers.
    """
    return replace_between(text, MARKERS, render_readme(figures))


def render(figures: Mapping[str, Any]) -> str:
    """The same tables for a terminal, and the time of the sampler's step."""
    text = render_readme(figures)
    if "scheduler_step" in figures:
        step = figures["scheduler_step"]
        ours, theirs = step["microseconds"]["ours"][0], step["microseconds"]["diffusers"][0]
        text += f"\nScheduler step: {ours:.0f} us, diffusers' {theirs:.0f} us, {_gain(step['faster'])} faster\n"
    return text


def _gain(values: Sequence[float]) -> str:
    """Median and interval of a ratio."""
    middle, low, high = values
    return f"{middle:.2f}x [{low:.2f}, {high:.2f}]"


def _table(title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A titled table, or nothing without rows; ``columns`` maps headings to formats of a row's values."""
    cells = [list(columns), ["---"] * len(columns), *([form.format(**row) for form in columns.values()] for row in rows)]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in cells)]) if rows else ""


def _edits(figures: Mapping[str, Any]) -> str:
    text = "; ".join(f"({name}) {what}" for name, what in RIVALS.items())
    title = f"Repainting: gain over {text}; time over the bare UNet and VAE forwards (goal {OVER_BARE_GOAL}); peak MB of tensors"
    rows = [{**row, **_edit_cells(row)} for row in figures.get("inpainting", {}).get("edits", [])]
    columns = {**MODEL_AND_SLICE, "repainted": "{repainted} of {slices}", "steps": "{steps}", "type": "{dtype}"}
    return _table(title, rows, {**columns, "(a)": "{a}", "(b)": "{b}", "(c)": "{c}", "over bare": "{bare}", "MB": "{mb}"})


def _edit_cells(row: Mapping[str, Any]) -> dict[str, str]:
    if not row["passed"]:
        return {**dict.fromkeys(RIVALS, DIFFERENT), "bare": "", "mb": ""}
    gains = {}
    for rival in RIVALS:
        goal = GOALS.get((row["model"], row["size_px"], row["empty_fraction"], rival))
        gain = _gain(row["faster_than"][rival]) if rival in row["faster_than"] else ""
        gains[rival] = f"{gain} (goal {goal:g}x)" if goal and gain else gain
    memory = " / ".join(f"{name} {peak:.0f}" for name, peak in row["peak_mb"].items() if name in ("ours", "b", "c"))
    return {**gains, "bare": f"{row['over_bare'][0]:.3f}", "mb": memory}


def _roi(figures: Mapping[str, Any]) -> str:
    title = "Repainting the region of interest at native resolution instead of the whole slice (goal: 2.4x more at half the side)"
    rows = [{**row, "gain": _gain(row["faster"])} for row in figures.get("inpainting", {}).get("roi", [])]
    return _table(title, rows, {**MODEL_AND_SLICE, "region": "{roi_px} px", "gain": "{gain}"})


def _peak(figures: Mapping[str, Any]) -> str:
    profile = figures.get("profile", {"unet": [], "peak_gflop_per_second": {}})
    peaks = ", ".join(f"{name} {rate:.0f}" for name, rate in profile["peak_gflop_per_second"].items())
    title = f"UNet calls against the measured rate of matrix multiplication ({peaks} GFLOP/s; goal 45 % on a GPU)"
    columns = {"rows": "{rows}", "type": "{dtype}", "GFLOP": "{gflop:.0f}", "GFLOP/s": "{gflop_per_second:.0f}"}
    return _table(title, profile["unet"], {**MODEL_AND_SLICE, **columns, "of the peak": "{share_of_peak:.0%}"})


def _shares(figures: Mapping[str, Any]) -> str:
    rows = figures.get("profile", {}).get("edits", [])
    kinds = {kind: f"{{shares[{kind}]:.0%}}" for kind in (rows[0]["shares"] if rows else ())}
    return _table("Time of an edit per kind of operation (torch.profiler)", rows, {**MODEL_AND_SLICE, **kinds})


def _masks(figures: Mapping[str, Any]) -> str:
    rows = []
    for row in figures.get("medsam", {}).get("masks", []):
        cells = {"ms": "", "gain": DIFFERENT, "bare": "", "mb": ""}
        if row["passed"]:
            memory = " / ".join(f"{name} {peak:.0f}" for name, peak in row["peak_mb"].items())
            milliseconds = 1000 * row["seconds"]["ours"][0] / row["slices"]
            gain, bare = _gain(row["faster_than"]["script"]), row["over_bare"][0]
            cells = {"ms": f"{milliseconds:.0f}", "gain": gain, "bare": f"{bare:.3f}", "mb": memory}
        rows.append({**row, **cells})
    title = "MedSAM: gain over its published script, slice by slice, in float32 (goal 1.5x)"
    columns = {"model": "{model}", "input": "{input_px} px", "type": "{dtype}", "ms per slice": "{ms}"}
    return _table(title, rows, {**columns, "gain": "{gain}", "over bare": "{bare}", "MB": "{mb}"})


def _steps(figures: Mapping[str, Any]) -> str:
    rows = [
        {**row, **{arm: 1000 * row["seconds_per_step"][arm][0] for arm in ("without", "with")}} for row in figures.get("training_step", [])
    ]
    title = "Training step of a small MONAI UNet at 128 px, every sample repainted, each repainted batch used R times"
    columns = {"R": "{repeats}", "ms without": "{without:.0f}", "ms with": "{with:.0f}", "overhead": "{overhead[0]:.0%}"}
    return _table(title, rows, columns)


def _lines(figures: Mapping[str, Any]) -> str:
    title = (
        "Time against the number of repainted slices or samples: a line (goals: slope within 1.10 of the bare forwards, intercept at most "
        "50 ms). Package: an edit of one slice if the forward passes take no time"
    )
    rows = [{**row, "least": row["counts"][0], "most": row["counts"][-1]} for row in figures.get("scaling", [])]
    columns = {
        "of": "{of}",
        "range": "{least} to {most}",
        "slope, ms": "{slope_ms:.1f}",
        "over bare": "{slope_over_bare:.3f}",
        "intercept, ms": "{intercept_ms[0]:.0f} [{intercept_ms[1]:.0f}, {intercept_ms[2]:.0f}]",
        "package, ms": "{package_ms:.1f}",
        "R²": "{r_squared:.4f}",
    }
    return _table(title, rows, columns)


def _levers(figures: Mapping[str, Any]) -> str:
    rows = []
    for row in figures.get("quality", []):
        cells = {"ssim": "not measurable", "share": "", "overlap": ""}
        if row["similarity"] is not None:
            cells = {"ssim": f"{row['similarity']:.3f}", "share": f"{row['accepted']:.0%}", "overlap": f"{row['dice']:.2f}"}
        rows.append({**row, **cells, "ms": 1000 * row["seconds"]})
    title = (
        f"Approximations: gain and cost in quality on {rows[0]['images'] if rows else 0} held-out images (SSIM inside the mask to the "
        "first row, the validator's acceptance and Dice; random weights have a speed, but no quality)"
    )
    columns = {"setting": "{lever}", "ms per edit": "{ms:.0f}", "gain": "{faster_than_default:.2f}x"}
    return _table(title, rows, {**columns, "SSIM": "{ssim}", "accepted": "{share}", "Dice": "{overlap}"})
