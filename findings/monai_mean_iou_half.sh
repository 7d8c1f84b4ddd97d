#!/usr/bin/env bash
# MONAI 1.6.1 (torch 2.13.0): a perfect segmentation of a large organ scores MeanIoU 0 and Dice 1, when the prediction is float16.
#
# Input:    a binary mask of 74 088 voxels (a cube of 4.2 cm at 1 mm) and the same mask as prediction, in float16, as a network in half
#           precision gives it (`(logits > 0).to(logits.dtype)`). The values 0 and 1 are exact in float16.
# Expected: 1 from every metric.
# Happens:  MeanIoU and GeneralizedDiceScore add voxels up in the type of the prediction. Float16 ends at 65 504, so the sum is infinite,
#           and intersection / infinity = 0. With both masks in float16 this begins at half the size (32 752 voxels), as both are added.
#           DiceMetric counts another way and says 1 for the same masks. No warning. Smaller structures score right, so a test on small
#           patches does not show it.
# Matters:  the best results on the largest structures count as the worst in the mean.
# Way out:  .float() or .bool() before the metric.
#
# Output seen:
#   64000 voxels, prediction float32, label float32: Dice 1, IoU 1, generalized Dice 1
#   64000 voxels, prediction float16, label float32: Dice 1, IoU 1, generalized Dice 1
#   74088 voxels, prediction float32, label float32: Dice 1, IoU 1, generalized Dice 1
#   74088 voxels, prediction float16, label float32: Dice 1, IoU 0, generalized Dice 0
#   29791 voxels, prediction float16, label float16: Dice 1, IoU 1, generalized Dice 1
#   35937 voxels, prediction float16, label float16: Dice 1, IoU 0, generalized Dice 0
#   MeanIoU of one perfect large organ and one half-found small one: 0.25 (right: 0.75)
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet monai==1.6.1 torch==2.13.0 numpy==2.4.6
cd "$work"
OMP_NUM_THREADS=1 venv/bin/python -W error::RuntimeWarning - <<'PYTHON'
import torch
from monai.metrics import DiceMetric, GeneralizedDiceScore, MeanIoU


def score(metric, prediction, label):
    metric(y_pred=prediction, y=label)
    return float(metric.aggregate())


def scores(side, prediction_type, label_type):
    mask = torch.zeros(1, 1, 48, 48, 48)
    mask[..., 2 : 2 + side, 2 : 2 + side, 2 : 2 + side] = 1
    metrics = DiceMetric(), MeanIoU(), GeneralizedDiceScore()
    return int(mask.sum()), [score(metric, mask.to(prediction_type), mask.to(label_type)) for metric in metrics]


seen = {}
half, full = torch.float16, torch.float32
cases = (40, full, full), (40, half, full), (42, full, full), (42, half, full), (31, half, half), (33, half, half)
for side, *types in cases:
    voxels, (dice, iou, generalized) = scores(side, *types)
    names = [str(t).removeprefix("torch.") for t in types]
    print(f"{voxels} voxels, prediction {names[0]}, label {names[1]}: Dice {dice:.0f}, IoU {iou:.0f}, generalized Dice {generalized:.0f}")
    seen[side, *names] = dice, iou, generalized

# two patients, the large organ found exactly, the small one by half: the mean says 0.25
small, found, large = torch.zeros(3, 1, 48, 48, 48)
small[:, :4, :4, :4] = 1
found[:, :4, :4, :2] = 1
large[:, 2:44, 2:44, 2:44] = 1
mean = MeanIoU()
mean(y_pred=torch.stack([large, found]).half(), y=torch.stack([large, small]))
both = float(mean.aggregate())
print(f"MeanIoU of one perfect large organ and one half-found small one: {both:.2f} (right: 0.75)")

wrong = {key for key, values in seen.items() if values != (1, 1, 1)}
assert wrong == {(42, "float16", "float32"), (33, "float16", "float16")}
assert all(seen[key] == (1, 0, 0) for key in wrong)
assert abs(both - 0.25) < 1e-6
PYTHON
