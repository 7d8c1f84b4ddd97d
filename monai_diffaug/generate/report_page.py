"""The report of a run: one page that opens from disk without a network, with counts, histograms and a gallery of results."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from monai_diffaug.errors import one_line
from monai_diffaug.files.whole_file import whole_file
from monai_diffaug.generate.job_record import FILTERED, JobRecord
from monai_diffaug.generate.report_charts import histogram_svg
from monai_diffaug.generate.report_pictures import data_url, strip_of
from monai_diffaug.generate.run_folder import Run

__all__ = ["REPORT_FILE", "pick_groups", "write_report"]

REPORT_FILE = "report.html"
TEMPLATE, SCRIPT = (Path(__file__).with_name(f"report_page.{suffix}") for suffix in ("html", "js"))
GROUPS = ("accepted", "borderline", "filtered")
BORDERLINE_SHARE = 0.1
LONGEST_TABLE = 30
SIZES = {"lesion_area_mm2": ("lesion area", "mm²"), "lesion_volume_ml": ("lesion volume", "ml")}


def write_report(run: Run, file: Path | None = None, *, per_group: int = 40, panel_px: int = 128, zoom: float | None = None) -> Path:
    """Write the report, whole or not at all; returns its path.

    Args:
        run: the run, see ``read_run``.
        file: by default ``report.html`` in the run's folder.
        per_group: most results in the gallery of each group: accepted, borderline, filtered. A result takes about 25 kB of a picture and
            60 kB of a volume.
        panel_px: side of a panel of the gallery.
        zoom: side of the displayed square in sides of the mask; None displays whole slices.

    Raises:
        ValueError: per_group or panel_px is not positive.
        OSError: the file cannot be written.
    """
    if per_group < 1 or panel_px < 1:
        raise ValueError(f"per_group and panel_px must be at least 1, got {per_group} and {panel_px}")
    file = run.folder / REPORT_FILE if file is None else file
    script = SCRIPT.read_text(encoding="utf-8")
    groups = pick_groups(run.records, per_group)
    shown = [(group, record) for group in GROUPS for record in groups[group]]
    base = Path(str(run.settings.get("datalist", ""))).parent
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"Synthetic images: {run.folder.absolute().name}"),
        about=escape(_about(run)),
        script=script,
        # no other script runs, also if a text of a record escaped its place
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        tiles="".join(_tiles(run)),
        tables=_counts_by_finding(run.records) + _reasons(run),
        charts="".join(_charts(run.records)),
        gallery_note=escape(_gallery_note(run, groups)),
        group_options=_options(group for group in GROUPS if groups[group]),
        finding_options=_options(sorted({_finding(record) for _, record in shown})),
        cards="".join(_card(run, record, group, base, panel_px, zoom) for group, record in shown),
    )
    with whole_file(file) as part:
        part.write_text(page, encoding="utf-8")
    return file


def pick_groups(records: Sequence[JobRecord], per_group: int) -> dict[str, list[JobRecord]]:
    """Results for the gallery, at most ``per_group`` of each group, spread evenly over the run.

    Borderline are the tenth of the accepted results with the lowest scores and the tenth of the filtered ones with the highest.

    >>> records = [JobRecord(f"j{i}", "s", i, 0, "accepted", "lesion", edit={"score": i / 20}) for i in range(20)]
    >>> {group: len(some) for group, some in pick_groups(records, 5).items()}
    {'accepted': 5, 'borderline': 2, 'filtered': 0}
    """
    accepted = [record for record in records if record.state != FILTERED]
    filtered = [record for record in records if record.state == FILTERED]
    lowest = sorted((r for r in accepted if _score(r) >= 0), key=_score)[: math.ceil(BORDERLINE_SHARE * len(accepted))]
    highest = sorted((r for r in filtered if _score(r) >= 0), key=_score, reverse=True)[: math.ceil(BORDERLINE_SHARE * len(filtered))]
    borderline = {record.job for record in (*lowest, *highest)}
    return {
        "accepted": _spread([record for record in accepted if record.job not in borderline], per_group),
        "borderline": _spread([*lowest, *highest], per_group),
        "filtered": _spread([record for record in filtered if record.job not in borderline], per_group),
    }


def _spread(records: Sequence[JobRecord], most: int) -> list[JobRecord]:
    count = min(most, len(records))
    return [records[int((k + 0.5) * len(records) / count)] for k in range(count)]


def _score(record: JobRecord) -> float:
    """Score of the validator; -1 without one."""
    score = (record.edit or {}).get("score", -1.0)
    return float(score) if isinstance(score, (int, float)) and math.isfinite(score) else -1.0


def _figure(record: JobRecord, name: str) -> float | None:
    value = (record.figures or {}).get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _finding(record: JobRecord) -> str:
    return record.finding or "control"


def _about(run: Run) -> str:
    settings = run.settings
    datalist, sources = settings.get("datalist", ""), len(settings.get("sources", {})) or len({r.source_id for r in run.records})
    return (
        f"{sources} source images of {datalist}; seed {settings.get('seed', '')}, spec {str(settings.get('spec_sha256', ''))[:12]}, "
        f"monai_diffaug {settings.get('package_version', '')}"
    )


def _tiles(run: Run) -> Iterable[str]:
    finished = len(run.records)
    counts = (("accepted", len(run.accepted)), ("filtered", len(run.filtered)), ("failed", len(run.failures)))
    for name, number in counts:
        share = f" ({number / finished:.0%})" if finished and name != "failed" else ""
        yield f'<div class="tile {name}"><b>{number}</b>{name}{share}</div>'
    seconds = [value for record in run.records if (value := _figure(record, "seconds")) is not None]
    if seconds:
        yield f'<div class="tile"><b>{sum(seconds) / len(seconds):.1f} s</b>per job, mean</div>'


def _counts_by_finding(records: Sequence[JobRecord]) -> str:
    counts = Counter((_finding(record), record.state) for record in records)
    rows = []
    for finding in sorted({finding for finding, _ in counts}):
        accepted, filtered = counts[finding, "accepted"], counts[finding, "filtered"]
        share = f"{filtered / (accepted + filtered):.0%}"
        rows.append((finding, accepted, filtered, share))
    return _table(("finding", "accepted", "filtered", "refused"), rows)


def _reasons(run: Run) -> str:
    """Reasons of filtered jobs and errors of failed ones, the most frequent first; numbers in a reason do not make it another one."""
    reasons = Counter((record.reason or "no reason", "filtered") for record in run.filtered)
    reasons.update((failure.error, "failed") for failure in run.failures)
    rows: list[Sequence[object]] = [(reason, state, number) for (reason, state), number in reasons.most_common(LONGEST_TABLE)]
    if len(reasons) > LONGEST_TABLE:
        rows.append((f"{len(reasons) - LONGEST_TABLE} more reasons", "", sum(reasons.values()) - sum(int(str(row[2])) for row in rows)))
    return _table(("reason", "state", "jobs"), rows) if rows else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def cell(value: object) -> str:
        kind = "number" if isinstance(value, int) or str(value).endswith("%") else "text"
        return f'<td class="{kind}">{escape(str(value))}</td>'

    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{body}</table>"


def _charts(records: Sequence[JobRecord]) -> Iterable[str]:
    def chart(title: str, unit: str, value: Callable[[JobRecord], float | None]) -> str:
        values: dict[str, list[float]] = {}
        for record in records:
            number = value(record)
            if number is not None:
                values.setdefault(record.state, []).append(number)
        return histogram_svg(title, unit, values)

    yield chart("score of the validator", "", lambda record: None if _score(record) < 0 else _score(record))
    for name, (title, unit) in SIZES.items():
        if any(_figure(record, name) is not None for record in records):
            yield chart(title, unit, lambda record, name=name: _figure(record, name))  # type: ignore[misc]
    yield chart("local SSIM to the original", "", lambda record: _figure(record, "local_ssim"))
    yield chart("time per job", "s", lambda record: _figure(record, "seconds"))


def _gallery_note(run: Run, groups: Mapping[str, Sequence[JobRecord]]) -> str:
    shown = ", ".join(f"{len(groups[group])} {group}" for group in GROUPS)
    without = sum(not (record.files or {}).get("image") for group in GROUPS for record in groups[group])
    note = (
        f"{shown}, of {len(run.accepted)} accepted and {len(run.filtered)} filtered jobs, spread over the run. A click enlarges a card. "
        "Difference: red is brighter, blue is darker."
    )
    note += " Borderline: the tenth of the accepted results with the lowest scores, and of the filtered ones with the highest."
    return note + (f" {without} have no files: keep_filtered: true in the spec keeps those of filtered jobs." if without else "")


def _options(values: Iterable[str]) -> str:
    return "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)


def _card(run: Run, record: JobRecord, group: str, base: Path, panel_px: int, zoom: float | None) -> str:
    size = next((value for name in SIZES if (value := _figure(record, name)) is not None), None)
    data = {
        "job": record.job,
        "group": group,
        "finding": _finding(record),
        "score": "" if _score(record) < 0 else f"{_score(record):.4f}",
        "size": "" if size is None else f"{size:.6g}",
        "ssim": _text(_figure(record, "local_ssim")),
        "seconds": _text(_figure(record, "seconds")),
    }
    attributes = " ".join(f'data-{name}="{escape(value)}"' for name, value in data.items())
    units = {name: unit for name, (_, unit) in SIZES.items()}
    figures = [f"score {data['score']}"] if data["score"] else []
    figures += [f"{_figure(record, name):.4g} {unit}" for name, unit in units.items() if _figure(record, name) is not None]
    figures += [f"local SSIM {data['ssim']}"] if data["ssim"] else []
    figures += [f"{data['seconds']} s"] if data["seconds"] else []
    lines = [
        f"<b>{escape(record.job)}</b> {escape(', '.join(filter(None, (record.state, record.kind, record.finding))))}",
        escape(record.prompt),
        f'<span class="figures">{escape(", ".join(figures))}</span>',
        escape(f"donor {record.donor['id']}") if record.donor else "",
        escape(record.reason),
    ]
    text = "<br>".join(line for line in lines if line)
    picture = _picture(run, record, base, panel_px, zoom)
    return f'<article class="card" {attributes}>{picture}<div class="text">{text}</div></article>'


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _picture(run: Run, record: JobRecord, base: Path, panel_px: int, zoom: float | None) -> str:
    if not {"image", "mask"} <= (record.files or {}).keys():
        return '<div class="nopicture">no files kept</div>'
    try:
        original = base / Path(str((record.source or {})["image"])).expanduser()
        strip = strip_of(original, run.file(record, "image"), run.file(record, "mask"), panel_px=panel_px, zoom=zoom)
    except (ValueError, OSError, KeyError) as error:  # a file that is missing or damaged; the report shows the others
        return f'<div class="nopicture">{escape(one_line(error))}</div>'
    names = "".join(f"<span>{name}</span>" for name in ("original", "mask", "result", "difference"))
    alt = escape(f"original, mask, result and difference of {record.job}")
    return f'<div class="columns">{names}</div><img loading="lazy" alt="{alt}" src="{data_url(strip)}">'
