"""nnU-Net's own checks and planning; they need the extra ``nnunet``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from monai_diffaug.generate.export_run import export_run
from tests.generate.run_folders import save, small_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("nnunetv2") is None, reason="nnunetv2 is not installed: pip install monai_diffaug[nnunet]"),
]

PLAN = """
import sys
if __name__ == "__main__":
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    number = int(sys.argv[1])
    api.extract_fingerprint_dataset(number, num_processes=1, check_dataset_integrity=True)
    api.plan_experiment_dataset(number)
    if "preprocess" in sys.argv:
        api.preprocess_dataset(number, configurations=("2d",), num_processes=(1,))
"""

CONVERT = """
import sys
if __name__ == "__main__":
    from nnunetv2.dataset_conversion.convert_MSD_dataset import convert_msd_dataset
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    import os
    convert_msd_dataset(sys.argv[1], 777, 1)
    (name,) = os.listdir(os.environ["nnUNet_raw"])
    verify_dataset_integrity(os.path.join(os.environ["nnUNet_raw"], name), 1)
"""


def nnunet(folder: Path, script: str, *arguments: str) -> str:
    places = {name: folder / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for place in places.values():
        place.mkdir(exist_ok=True)
    (folder / "script.py").write_text(script)
    environment = os.environ | {name: str(place) for name, place in places.items()} | {"nnUNet_def_n_proc": "1"}
    command = [sys.executable, str(folder / "script.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert not [line for line in text.splitlines() if line.startswith(("Error", "ERROR", "Warning: "))], text
    return text


@pytest.mark.parametrize("shape", [(48, 40), (48, 40, 3), (48, 40, 4)], ids=["grey", "rgb", "volume"])
def test_nnunet_verifies_plans_and_takes_the_splits(tmp_path, shape):
    maker = small_run(tmp_path, shape=shape, ids={"unsure": 2, "mass": 5}, value=5)
    label = np.zeros(shape[:2] if shape[-1] == 3 or len(shape) == 2 else shape, np.uint8)
    label[4:9, 4:9], label[20:28, 20:28] = 2, 5
    save(label, tmp_path / maker.entries[0]["label"])
    raw = tmp_path / "nnUNet_raw" / "Dataset501_Test"
    export_run(maker.run, "nnunet", raw, ignore=2)
    text = nnunet(tmp_path, PLAN, "501", *(["preprocess"] if shape == (48, 40) else []))
    assert "verify_dataset_integrity Done" in text and "Plans were saved" in text
    preprocessed = tmp_path / "nnUNet_preprocessed" / "Dataset501_Test"
    splits = [json.loads((place / "splits_final.json").read_text()) for place in (raw, preprocessed)]
    assert splits[0] == splits[1]
    if shape == (48, 40):
        cases = {path.name.removesuffix(".pkl") for path in (preprocessed / "nnUNetPlans_2d").glob("*.pkl")}
        assert {name for split in splits[0] for name in split["train"] + split["val"]} == cases and len(cases) == 10


def test_nnunet_refuses_the_class_ids_that_the_export_renumbers(tmp_path):
    """The check is able to fail: the same data with the ids of the files is refused."""
    maker = small_run(tmp_path, ids={"mass": 5}, value=5)
    raw = tmp_path / "nnUNet_raw" / "Dataset501_Test"
    export_run(maker.run, "nnunet", raw)
    content = json.loads((raw / "dataset.json").read_text())
    content["labels"]["mass"] = 5
    (raw / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(AssertionError, match="consecutive"):
        nnunet(tmp_path, PLAN, "501")


def test_nnunet_converts_the_decathlon_folder(tmp_path):
    maker = small_run(tmp_path, shape=(48, 40, 4))
    export_run(maker.run, "decathlon", tmp_path / "Task501_Test")
    assert "verify_dataset_integrity Done" in nnunet(tmp_path, CONVERT, str(tmp_path / "Task501_Test"))
