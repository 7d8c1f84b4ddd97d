"""Names, seeds and kinds of jobs depend on nothing but the spec's seed, the source and the copy."""

import json
from dataclasses import replace

import pytest

from monai_diffaug.generate.jobs import Job, job_name, plan_jobs, shard_of
from monai_diffaug.generate.source_images import FileState, SourceImage

SOURCES = [SourceImage(f"{i}.png", f"{i}.png", None, "/data", f"p{i}") for i in range(40)]


def test_a_job_does_not_depend_on_the_other_sources_or_the_number_of_copies() -> None:
    whole = {job.name: job for job in plan_jobs(SOURCES, seed=1, copies=3, normal=0.3)}
    part = plan_jobs(reversed(SOURCES[5:9]), seed=1, copies=2, normal=0.3)
    assert len(whole) == 120 and len(part) == 8 and all(whole[job.name] == job for job in part)


def test_all_seeds_differ_and_follow_the_seed_of_the_spec() -> None:
    one, other = (plan_jobs(SOURCES, seed=seed, copies=5, normal=0) for seed in (1, 2))
    assert len({job.seed for job in (*one, *other)}) == 400 and [job.name for job in one] == [job.name for job in other]


@pytest.mark.parametrize("normal", [0.0, 0.3, 0.5, 1.0])
def test_the_share_of_controls_is_that_of_the_spec_in_each_source_up_to_rounding(normal: float) -> None:
    jobs = plan_jobs(SOURCES, seed=0, copies=5, normal=normal)
    assert abs(sum(job.kind == "control" for job in jobs) / 200 - normal) <= 0.06
    for source in SOURCES:
        assert abs(sum(job.kind == "control" for job in jobs if job.source == source) - 5 * normal) < 1


def test_names_are_safe_file_names_and_keep_the_stem() -> None:
    assert job_name("x", "a b/säge (1).nii.gz", 7).startswith("s-ge-1-") and job_name("x", "...", 0).startswith("image-")
    assert job_name("a/1.png", "a/1.png", 0) != job_name("b/1.png", "b/1.png", 0)
    assert len(job_name("x", "n" * 300, 0)) < 100


def test_shards_share_no_job_and_miss_none() -> None:
    jobs = plan_jobs(SOURCES, seed=0, copies=1, normal=0)
    shards = [shard_of(jobs, index, 3) for index in range(3)]
    assert sorted(job.name for shard in shards for job in shard) == [job.name for job in jobs]


def test_a_job_crosses_a_process_as_plain_data() -> None:
    source = replace(SOURCES[0], words={"modality": "CT"}, image_state=FileState("0" * 64, 7, 8))
    (job,) = plan_jobs([source], seed=0, copies=1, normal=0)
    assert Job.from_plain(json.loads(json.dumps(job.to_plain()))) == job and Job.from_plain(job.to_plain()).source.image_state == (
        "0" * 64,
        7,
        8,
    )


def test_two_jobs_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="give two jobs one name"):
        plan_jobs([SOURCES[0], SOURCES[0]], seed=0, copies=1, normal=0)
