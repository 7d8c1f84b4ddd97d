from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_diffaug.commands.cli import main
from monai_diffaug.commands.demo_cases import NILEARN_T1, glioma_mask
from monai_diffaug.files.image_file import read_picture
from monai_diffaug.models.registry import tiny_folder

nilearn = pytest.importorskip("nilearn", reason="extra 'demo' is not installed")


@pytest.mark.slow
def test_the_glioma_lies_in_the_white_matter_of_one_hemisphere():
    t1 = Path(nilearn.__file__).parent / NILEARN_T1
    image = read_picture(t1)
    mask = glioma_mask(image)[0] > 0
    assert 10 <= mask.any(axis=(0, 1)).sum() <= 14
    white = np.asarray(nib.load(str(t1).replace("_t1_", "_wm_")).dataobj) > 127
    assert white[mask].mean() > 0.8
    assert np.flatnonzero(mask.any(axis=(1, 2))).min() + image.affine[0, 3] > 0


@pytest.mark.slow
@pytest.mark.skipif(
    not all(tiny_folder(part).is_dir() for part in ("inpainter", "medsam", "validator")), reason="the embedded models are not here"
)
def test_the_demo_changes_nothing_outside_and_prints_its_table(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    names = {p.name for p in tmp_path.iterdir()}
    for case, suffix in (("brain", ".nii.gz"), ("fundus", ".png")):
        assert {f"{case}_{part}" for part in ("preview.png", "edited.json", f"original{suffix}", f"edited{suffix}")} <= names
        assert {f"{case}_edited_{part}{suffix}" for part in ("mask", "label")} <= names
        record = json.loads((tmp_path / f"{case}_edited.json").read_text())
        assert record["record"]["applied"] and record["figures"]["changed_outside"] == 0
        assert record["figures"]["local_ssim"] < 0.95
        assert case in table
