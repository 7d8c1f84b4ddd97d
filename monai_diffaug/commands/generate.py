"""``monai-diffaug generate SPEC --data DATALIST --out DIR``: many edited images of many sources, on one machine or a cluster."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffaug.commands.arguments import WrongInputError, check_out, finite, shows_progress, whole

if TYPE_CHECKING:
    from monai_diffaug.generate.generate_run import RunCounts
    from monai_diffaug.generate.run_plan import RunPlan
    from monai_diffaug.generate.source_images import SourceImage
    from monai_diffaug.generate.spec import GenerateSpec

__all__ = ["add_parser", "run"]

SOME_FAILED = 1
NAMES_SHOWN = 3
EXPORT_NAMES = {"nnunet": "Dataset900_Synthetic", "decathlon": "Task900_Synthetic"}  # folders of other names are refused


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    generate = commands.add_parser(
        "generate",
        parents=[common],
        help="edit many images",
        description="Make the results that SPEC describes of each image in a datalist. A call with the same DIR goes on where the last one "
        "stopped: finished jobs are not run again, failed ones are. Exit code 1 says that a job failed.",
    )
    generate.add_argument("spec", type=Path, metavar="SPEC", help=".yaml or .json with pipeline, copies, normal, seed, format")
    generate.add_argument("--data", type=Path, required=True, metavar="DATALIST", help="MONAI datalist of images and labels")
    generate.add_argument("--section", default="training", metavar="NAME", help="list in the datalist, default training")
    generate.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    generate.add_argument("--dry-run", action="store_true", help="print the plan after three trial edits; write nothing")
    again = generate.add_mutually_exclusive_group()
    again.add_argument("--continue", action="store_true", dest="go_on", help="run what has no result in DIR; this is the default")
    again.add_argument("--restart", action="store_true", help="remove the results in DIR and begin again")
    generate.add_argument(
        "--retries", type=lambda text: whole(text, 0, 100), default=0, metavar="N", help="further attempts of a failed job"
    )
    generate.add_argument(
        "--workers",
        type=lambda text: whole(text, 0, 1024),
        default=0,
        metavar="N",
        help="processes, or actors with --ray; default this one",
    )
    generate.add_argument("--shard", type=shard, metavar="I/N", help="every N-th job from I on, I from 0; for SLURM arrays")
    generate.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS", help="run on a Ray cluster; without ADDRESS that of RAY_ADDRESS, or this machine"
    )
    generate.add_argument("--gpus-per-actor", type=finite, default=0.0, metavar="G", help="with --ray, e.g. 0.25; default 0")
    generate.set_defaults(run=run)


def shard(text: str) -> tuple[int, int]:
    """I/N with 0 <= I < N."""
    first, _, second = text.partition("/")
    try:
        index, count = int(first), int(second)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected I/N, e.g. 0/8, got {text!r}") from None
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"I/N needs 0 <= I < N, got {text}; the first shard is 0/{max(count, 1)}")
    return index, count


def run(options: argparse.Namespace) -> int:
    """Run it; returns 1 if a job failed."""
    check_out(options.out)
    if options.restart and options.shard:
        raise WrongInputError("--restart would remove the results of the other shards; remove DIR, or give a new --out")
    if options.gpus_per_actor and options.ray is None:
        raise WrongInputError("--gpus-per-actor is for --ray; name the GPU in the pipeline, e.g. device: cuda:0")
    if options.gpus_per_actor < 0:
        raise WrongInputError(f"--gpus-per-actor must be 0 or more, got {options.gpus_per_actor:g}")

    import monai_diffaug.generate.generate_run as runs
    from monai_diffaug.generate.job_record import RecordError
    from monai_diffaug.generate.local_runner import WorkerError
    from monai_diffaug.generate.run_lock import RunLockedError
    from monai_diffaug.generate.source_images import DatalistError, read_sources
    from monai_diffaug.generate.spec import SpecError, read_spec

    try:
        spec = read_spec(options.spec)
        sources = read_sources(options.data, options.section)
        if options.dry_run:
            return _print_plan(options, spec, sources)
        runner = runs.Runner(options.workers, options.ray, options.gpus_per_actor, options.retries)
        with _Bar(options) as bar:
            counts = runs.generate_run(
                spec,
                sources,
                options.out,
                datalist=str(options.data.absolute()),
                section=options.section,
                runner=runner,
                shard=options.shard,
                restart=options.restart,
                progress=bar.show,
            )
    except (SpecError, DatalistError, RecordError, RunLockedError, WorkerError, runs.RunChangedError) as error:
        raise WrongInputError(str(error)) from error
    if counts.disk_full:
        raise OSError(f"the disk of {options.out} is full; make room and give the same command again: finished jobs are kept")
    is_last = options.shard is None or _all_done(options.out, spec, sources)
    exported = _finish(options, spec, is_complete=counts.failed == 0) if is_last else ""
    if not options.quiet:
        done = f", {counts.done_before} were done before" if counts.done_before else ""
        print(f"{counts.accepted} accepted, {counts.filtered} filtered, {counts.failed} failed of {counts.total} jobs{done}: {options.out}")
        print(exported, end="")
    return SOME_FAILED if counts.failed else 0


def _all_done(folder: Path, spec: GenerateSpec, sources: list[SourceImage]) -> bool:
    """Whether all shards have ended."""
    from monai_diffaug.generate.run_folder import finished_jobs

    return len(finished_jobs(folder)) == spec.copies * len(sources)


def _finish(options: argparse.Namespace, spec: GenerateSpec, *, is_complete: bool) -> str:
    """Write the report of a run and, if no job failed, the export that the spec names; returns a line about the export."""
    from monai_diffaug.generate.export_cases import ExportError
    from monai_diffaug.generate.export_run import export_run
    from monai_diffaug.generate.report_page import write_report
    from monai_diffaug.generate.run_folder import read_run
    from monai_diffaug.generate.spec import FOLDER

    run_in_memory = read_run(options.out)
    if run_in_memory.records:
        write_report(run_in_memory)
    if spec.format == FOLDER or not is_complete:
        return ""
    place = options.out / "exports" / EXPORT_NAMES.get(spec.format, spec.format)
    try:
        exported = export_run(options.out, spec.format, place, datalist=options.data, section=options.section)
    except ExportError as error:
        raise WrongInputError(f"the run is complete, but not its export: {error}") from error
    return f"{spec.format}: {exported.real} real and {exported.synthetic} synthetic cases: {place}\n"


class _Bar:
    """Progress on stderr: counts, images per minute and time left."""

    def __init__(self, options: argparse.Namespace) -> None:
        from tqdm import tqdm

        self.bar = tqdm(disable=not shows_progress(options), unit="job", file=sys.stderr, dynamic_ncols=True)
        self.is_new = True

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def show(self, counts: RunCounts) -> None:
        if self.is_new:
            self.is_new = False
            self.bar.reset(total=counts.total)
            self.bar.initial = self.bar.n = counts.done_before
        self.bar.set_postfix_str(
            f"accepted {counts.accepted}, filtered {counts.filtered}, failed {counts.failed}, {counts.per_minute:.1f} a minute",
            refresh=False,
        )
        self.bar.n = counts.done_before + counts.ended
        self.bar.refresh()


def _print_plan(options: argparse.Namespace, spec: GenerateSpec, sources: list[SourceImage]) -> int:
    from monai_diffaug.generate.run_plan import plan_run

    plan = plan_run(spec, sources, options.out, shard=options.shard)
    print("\n".join(_plan_lines(plan, options.workers)))
    return SOME_FAILED if plan.failures else 0


def _plan_lines(plan: RunPlan, workers: int) -> list[str]:
    total = len(plan.jobs)
    names = [*plan.jobs[:NAMES_SHOWN], "...", plan.jobs[-1]] if total > NAMES_SHOWN + 1 else plan.jobs
    lines = [
        f"jobs: {total} ({total - plan.controls} lesions, {plan.controls} controls), {plan.done} done",
        f"names: {', '.join(names)}",
        f"time: {_duration(plan.seconds(workers))} with {max(workers, 1)} worker(s), {plan.job_seconds:.2f} s per job",
        f"disk: {plan.bytes_needed / 1e6:.1f} MB of {plan.bytes_free / 1e9:.1f} GB free",
    ]
    lines += [f"a trial edit failed: {failure}" for failure in plan.failures]
    if plan.bytes_needed > plan.bytes_free:
        lines.append("the disk has not enough room")
    return lines


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _duration(3725)
    '1 h 2 min'
    >>> _duration(62), _duration(1.4)
    ('1 min 2 s', '1 s')
    """
    whole_seconds = round(seconds)
    minutes, rest = divmod(whole_seconds, 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
