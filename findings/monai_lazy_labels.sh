#!/usr/bin/env bash
# MONAI 1.6.1 (torch 2.13.0): Compose(..., lazy=True) resamples label maps linearly although every transform says mode="nearest".
#
# Input:    a label with the classes 0, 1 and 4; Spacingd, RandFlipd and the like with mode="nearest", put into Compose(lazy=True), the
#           switch that MONAI recommends against repeated interpolation.
# Expected: classes 0, 1 and 4, as without the switch. The documentation of apply_pending says that transforms whose modes differ are
#           not merged and that each keeps its mode.
# Happens:  the mode of the transforms does not reach the resampling; the default (bilinear) is used for every key, also where there is
#           one transform alone. The label gets values in between; rounding to whole classes makes classes 2 and 3, which the data set
#           does not have, along the border of class 4. No warning.
#           A crop, flip or pad alone moves whole voxels and is right, so a pipeline with these only does not show it.
# Matters:  the training labels are wrong at every border; losses that cast labels to integers train on classes that do not exist.
# Way out:  Compose(..., lazy=True, overrides={"label": {"mode": "nearest"}}).
#
# Output seen:
#   RandFlipd            eager 3 values; lazy 3 values, rounded [0, 1, 4], 0 voxels of no class; lazy with overrides 3 values
#   Spacingd             eager 3 values; lazy 19 values, rounded [0, 1, 2, 4], 105 voxels of no class; lazy with overrides 3 values
#   Rotated              eager 3 values; lazy 61 values, rounded [0, 1, 2, 3, 4], 120 voxels of no class; lazy with overrides 3 values
#   Resized              eager 3 values; lazy 21 values, rounded [0, 1, 2, 3, 4], 75 voxels of no class; lazy with overrides 3 values
#   RandAffined          eager 3 values; lazy 62 values, rounded [0, 1, 2, 3, 4], 126 voxels of no class; lazy with overrides 3 values
#   RandFlipd, Spacingd  eager 3 values; lazy 28 values, rounded [0, 1, 2, 4], 105 voxels of no class; lazy with overrides 3 values
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet monai==1.6.1 torch==2.13.0 numpy==2.4.6
cd "$work"
OMP_NUM_THREADS=1 venv/bin/python - <<'PYTHON'
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandAffined, RandFlipd, Resized, Rotated, Spacingd

label = torch.zeros(1, 32, 32, 32)
label[:, 8:20, 8:20, 8:20] = 1
label[:, 20:26, 10:20, 10:20] = 4


def flip():
    return RandFlipd("label", prob=1, spatial_axis=0)


pipelines = {
    "RandFlipd": lambda: [flip()],
    "Spacingd": lambda: [Spacingd("label", pixdim=1.3, mode="nearest")],
    "Rotated": lambda: [Rotated("label", angle=(0.3, 0.0, 0.0), mode="nearest")],
    "Resized": lambda: [Resized("label", spatial_size=(20, 20, 20), mode="nearest")],
    "RandAffined": lambda: [RandAffined("label", prob=1, rotate_range=0.3, mode="nearest")],
    "RandFlipd, Spacingd": lambda: [flip(), Spacingd("label", pixdim=1.3, mode="nearest")],
}


def values(build, **switches):
    transform = Compose(build(), **switches).set_random_state(0)
    result = transform({"label": MetaTensor(label.clone(), affine=torch.eye(4))})["label"]
    return torch.unique(result.as_tensor()), int(((result.round() != 0) & (result.round() != 1) & (result.round() != 4)).sum())


nearest = {"label": {"mode": "nearest"}}
broken = {}
for name, build in pipelines.items():
    eager, lazy, mended = (values(build, **s) for s in ({}, {"lazy": True}, {"lazy": True, "overrides": nearest}))
    classes = [sorted({int(v) for v in part[0].round()}) for part in (eager, lazy, mended)]
    broken[name] = len(lazy[0]), lazy[1]
    print(
        f"{name:20} eager {len(eager[0])} values; lazy {len(lazy[0])} values, rounded {classes[1]}, {lazy[1]} voxels of no class; "
        f"lazy with overrides {len(mended[0])} values"
    )
    assert classes[0] == classes[2] == [0, 1, 4] and len(eager[0]) == len(mended[0]) == 3

assert broken.pop("RandFlipd") == (3, 0)
assert all(count > 10 and no_class > 0 for count, no_class in broken.values())
PYTHON
