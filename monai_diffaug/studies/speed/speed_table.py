"""The README's tables, generated from the JSON of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai_diffaug.studies.markers import replace_between

__all__ = ["GOALS", "MARKERS", "insert_tables", "render", "render_readme"]

MARKERS = "benchmark"

RIVALS = {
    "a": "a loop of diffusers' pipeline over all slices, PIL",
    "b": "the same over non-empty slices, tensors, prompt encoded once",
    "c": "one batched call of the pipeline",
}
# (side of a slice, share of empty slices, rival): least gain aimed at, by model
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


def render_readme(figures: Mapping[str, Any]) -> str:
    """The Markdown that stands between the markers in the README: the same JSON always gives the same text."""
    machine, amount = figures["machine"], figures["amount"]
    device = machine["gpu"] if figures["device"] == "cuda" else f"{machine['processor']}, one thread"
    head = (
        f"Measured on {device} with `monai-diffaug evaluate speed` (torch {machine['torch']}, diffusers {machine['diffusers']}; "
        f"medians of {amount['rounds']} interleaved rounds, in brackets their 95 % interval). Arms are compared before they are timed: "
        "float32 results differ by at most 2e-5 in the model's range [-1, 1], those of (a), which are 8 bit, by half a grey level more."
    )
    tables = [table(figures) for table in (_edits, _roi, _peak, _spent, _masks, _steps, _lines, _levers)]
    return "\n\n".join([head, *(table for table in tables if table)]) + "\n"


def insert_tables(text: str, figures: Mapping[str, Any]) -> str:
    """The text with the tables between its markers.

    Raises:
        ValueError: the text has no markers.
    """
    return replace_between(text, MARKERS, render_readme(figures))


def render(figures: Mapping[str, Any]) -> str:
    """The same tables for a terminal, with the sampler's step."""
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


def _markdown(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join([f"**{title}**", "", *lines])


def _edits(figures: Mapping[str, Any]) -> str:
    rows = []
    for row in figures.get("inpainting", {}).get("edits", []):
        case = [row["model"], f"{row['size_px']} px", f"{row['repainted']} of {row['slices']}", str(row["steps"]), row["dtype"]]
        if not row["passed"]:
            rows.append([*case, *["results differ: not timed"] * 3, "", ""])
            continue
        gains = []
        for rival in RIVALS:
            goal = GOALS.get((row["model"], row["size_px"], row["empty_fraction"], rival))
            gain = _gain(row["faster_than"][rival]) if rival in row["faster_than"] else ""
            gains.append(f"{gain} (goal {goal:g}x)" if goal and gain else gain)
        slowest = {name: peak for name, peak in row["peak_mb"].items() if name in ("ours", "c", "b")}
        memory = " / ".join(f"{name} {peak:.0f}" for name, peak in slowest.items())
        rows.append([*case, *gains, f"{row['over_bare'][0]:.3f}", memory])
    if not rows:
        return ""
    text = "; ".join(f"({name}) {what}" for name, what in RIVALS.items())
    title = f"Repainting: gain over {text}; time over the bare UNet and VAE forwards (goal {OVER_BARE_GOAL}); peak MB of tensors"
    return _markdown(title, ["model", "slice", "repainted", "steps", "type", "(a)", "(b)", "(c)", "over bare", "MB"], rows)


def _roi(figures: Mapping[str, Any]) -> str:
    rows = [
        [row["model"], f"{row['size_px']} px", f"{row['roi_px']} px", _gain(row["faster"])]
        for row in figures.get("inpainting", {}).get("roi", [])
    ]
    title = "Repainting the region of interest at native resolution instead of the whole slice (goal: 2.4x more at half the side)"
    return _markdown(title, ["model", "slice", "region", "gain"], rows) if rows else ""


def _peak(figures: Mapping[str, Any]) -> str:
    rows = [
        [
            row["model"],
            f"{row['size_px']} px",
            str(row["rows"]),
            row["dtype"],
            f"{row['gflop']:.0f}",
            f"{row['gflop_a_second']:.0f}",
            f"{100 * row['share_of_peak']:.0f} %",
        ]
        for row in figures.get("profile", {}).get("unet", [])
    ]
    if not rows:
        return ""
    peaks = ", ".join(f"{name} {rate:.0f}" for name, rate in figures["profile"]["peak_gflop_a_second"].items())
    title = f"UNet calls against the measured rate of matrix multiplication ({peaks} GFLOP/s; goal 45 % on a GPU)"
    return _markdown(title, ["model", "slice", "rows", "type", "GFLOP", "GFLOP/s", "of the peak"], rows)


def _spent(figures: Mapping[str, Any]) -> str:
    rows = [
        [row["model"], f"{row['size_px']} px", *(f"{100 * share:.0f} %" for share in row["shares"].values())]
        for row in figures.get("profile", {}).get("edits", [])
    ]
    if not rows:
        return ""
    kinds = list(figures["profile"]["edits"][0]["shares"])
    return _markdown("Where the time of an edit goes (torch.profiler)", ["model", "slice", *kinds], rows)


def _masks(figures: Mapping[str, Any]) -> str:
    rows = []
    for row in figures.get("medsam", {}).get("masks", []):
        case = [row["model"], f"{row['input_px']} px", row["dtype"]]
        if row["passed"]:
            memory = " / ".join(f"{name} {peak:.0f}" for name, peak in row["peak_mb"].items())
            ours = 1000 * row["seconds"]["ours"][0] / row["slices"]
            rows.append([*case, f"{ours:.0f}", _gain(row["faster_than"]["script"]), f"{row['over_bare'][0]:.3f}", memory])
        else:
            rows.append([*case, "", "results differ: not timed", "", ""])
    title = "MedSAM: gain over its published script, slice by slice, in float32 (goal 1.5x)"
    return _markdown(title, ["model", "input", "type", "ms a slice", "gain", "over bare", "MB"], rows) if rows else ""


def _steps(figures: Mapping[str, Any]) -> str:
    rows = []
    for row in figures.get("training_step", []):
        milliseconds = [f"{1000 * row['seconds_a_step'][arm][0]:.0f}" for arm in ("without", "with")]
        rows.append([str(row["repeats"]), *milliseconds, f"{100 * row['overhead'][0]:.0f} %"])
    title = "Training step of a small MONAI UNet at 128 px, every sample repainted, each repainted batch used R times"
    return _markdown(title, ["R", "ms without", "ms with", "overhead"], rows) if rows else ""


def _lines(figures: Mapping[str, Any]) -> str:
    rows = [
        [
            row["of"],
            f"{row['counts'][0]} to {row['counts'][-1]}",
            f"{row['slope_ms']:.1f}",
            f"{row['slope_over_bare']:.3f}",
            "{:.0f} [{:.0f}, {:.0f}]".format(*row["intercept_ms"]),
            f"{row['own_ms']:.1f}",
            f"{row['r_squared']:.4f}",
        ]
        for row in figures.get("scaling", [])
    ]
    title = (
        "Cost against the number repainted: a line (goals: slope within 1.10 of the bare forwards, intercept at most 50 ms; beside it an "
        "edit of one slice when the forwards take no time)"
    )
    return _markdown(title, ["of", "range", "slope, ms", "over bare", "intercept, ms", "own, ms", "R²"], rows) if rows else ""


def _levers(figures: Mapping[str, Any]) -> str:
    rows = [
        [
            row["lever"],
            f"{1000 * row['seconds']:.0f}",
            f"{row['faster_than_default']:.2f}x",
            *(
                ["not measurable", "", ""]
                if row["similarity"] is None
                else [f"{row['similarity']:.3f}", f"{100 * row['accepted']:.0f} %", f"{row['dice']:.2f}"]
            ),
        ]
        for row in figures.get("quality", [])
    ]
    if not rows:
        return ""
    count = figures["quality"][0]["images"]
    title = (
        f"What is not exact: gain and cost in quality on {count} held-out breast ultrasound images (SSIM inside the mask to the first row, "
        "the validator's acceptance and Dice; random weights have a speed, but no quality)"
    )
    return _markdown(title, ["setting", "ms an edit", "gain", "SSIM", "accepted", "Dice"], rows)
