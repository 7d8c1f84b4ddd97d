"""``benchmarks/gpu.sh`` in a dry run on the CPU: all stages run, leave their results, and are not run again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("OUT", "PYTHONPATH")}
    environment |= {"GPU_FOLDER": str(folder), "GPU_DEVICE": "cpu", "GPU_DRY_RUN": "1", "GPU_PYTHON": sys.executable, **variables}
    return subprocess.run(["bash", "benchmarks/gpu.sh", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580)


def test_without_data_it_says_what_to_do(tmp_path: Path) -> None:
    ended = run(tmp_path)
    assert ended.returncode == 2 and "benchmarks/gpu.sh pack PACKS" in ended.stderr


@pytest.mark.slow
def test_the_stages_run_in_order_and_only_once(tmp_path: Path, packed) -> None:
    datalist = packed("spleen_ct")
    folder = tmp_path / "gpu"
    folder.mkdir()
    (folder / "data").symlink_to(datalist.parent)
    (datalist.parent / "datalist.json").write_text(datalist.read_text())
    ended = run(folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    stages = [line.split("\t") for line in (folder / "out/stages.tsv").read_text().splitlines()]
    assert [(name, status) for name, _, status in stages] == [("tests", "0"), ("training", "0"), ("speed_training-step", "0")]
    assert (folder / "out/inpainter/unet/diffusion_pytorch_model.safetensors").stat().st_size < 16 * 2**20
    figures = json.loads((folder / "out/speed_training-step.json").read_text())
    assert [row["repeats"] for row in figures["training_step"]] == [1, 10]
    again = run(folder)
    assert again.returncode == 0 and again.stdout.count("done before") == 3


def test_no_stage_runs_when_the_time_is_over(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/datalist.json").write_text("{}")
    ended = run(tmp_path, GPU_MINUTES="0")
    assert ended.returncode == 1 and "tests: no time left" in ended.stdout and not (tmp_path / "out/tests.log").exists()
