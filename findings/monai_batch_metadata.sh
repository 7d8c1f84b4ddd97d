#!/usr/bin/env bash
# MONAI 1.6.1 (torch 2.13.0): rows picked from a batch of MetaTensors carry the file names and affines of other patients.
#
# Input:    four NIfTI files, loaded with LoadImaged and collated by MONAI's DataLoader. Rows are picked from the batch: batch[keep] with a
#           boolean mask or an index tensor, torch.chunk / torch.split (micro-batches), torch.flip or roll over the batch axis (mixing).
# Expected: what batch[2:] does: each row keeps the affine and the file name of its own patient.
# Happens:  the voxels are picked, the metadata of the whole batch stays as it was. decollate_batch then pairs row i of the result with
#           the metadata of row i of the whole batch. Affines of four with two images pass without an error or a warning.
#           SaveImage writes the voxels of the third patient into the file of the first, with the first patient's affine.
# Matters:  predictions "kept" by a threshold, or computed in two halves of a batch, are saved under the wrong patient.
# Way out:  decollate first and pick from the list, or index with a slice or one number at a time.
#
# Output seen:
#   batch[2:]            voxels of patients [2, 3], file names of [2, 3], affines of [2, 3]
#   batch[mask]          voxels of patients [2, 3], file names of [0, 1], affines of [0, 1]
#   batch[index]         voxels of patients [3, 1], file names of [0, 1], affines of [0, 1]
#   torch.chunk          voxels of patients [2, 3], file names of [0, 1], affines of [0, 1]
#   torch.split          voxels of patients [2, 3], file names of [0, 1], affines of [0, 1]
#   torch.index_select   voxels of patients [3, 1], file names of [0, 1], affines of [0, 1]
#   torch.flip           voxels of patients [3, 2, 1, 0], file names of [0, 1, 2, 3], affines of [0, 1, 2, 3]
#   torch.roll           voxels of patients [3, 0, 1, 2], file names of [0, 1, 2, 3], affines of [0, 1, 2, 3]
#   files of SaveImage after batch[mask]: patient0_kept holds patient 2, patient1_kept holds patient 3
#   warnings: 0
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet monai==1.6.1 torch==2.13.0 numpy==2.4.6 nibabel==5.4.2
cd "$work"
OMP_NUM_THREADS=1 venv/bin/python - <<'PYTHON'
import re
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, SaveImage

items = []
for patient in range(4):
    affine = np.diag([1.0 + patient, 1.0 + patient, 1.0 + patient, 1.0])
    nib.save(nib.Nifti1Image(np.full((8, 8, 8), patient, np.float32), affine), f"patient{patient}.nii.gz")
    items.append({"image": f"patient{patient}.nii.gz"})
load = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])
batch = next(iter(DataLoader(Dataset(items, load), batch_size=4)))["image"]

mask, index = torch.tensor([False, False, True, True]), torch.tensor([3, 1])
picks = {
    "batch[2:]": lambda: batch[2:],
    "batch[mask]": lambda: batch[mask],
    "batch[index]": lambda: batch[index],
    "torch.chunk": lambda: torch.chunk(batch, 2)[1],
    "torch.split": lambda: torch.split(batch, 2)[1],
    "torch.index_select": lambda: torch.index_select(batch, 0, index),
    "torch.flip": lambda: torch.flip(batch, [0]),
    "torch.roll": lambda: torch.roll(batch, 1, 0),
}
seen = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name, pick in picks.items():
        images = decollate_batch(pick())
        voxels = [int(image.max()) for image in images]
        names = [int(re.search(r"patient(\d)", image.meta["filename_or_obj"])[1]) for image in images]
        affines = [int(image.affine[0, 0]) - 1 for image in images]
        seen[name] = voxels, names, affines
        print(f"{name:20} voxels of patients {voxels}, file names of {names}, affines of {affines}")
    save = SaveImage(output_dir="out", output_postfix="kept", separate_folder=False, resample=False, print_log=False)
    for image in decollate_batch(batch[mask]):
        save(image)

held = {path.name.removesuffix(".nii.gz"): int(nib.load(path).get_fdata().max()) for path in sorted(Path("out").glob("*.nii.gz"))}
print("files of SaveImage after batch[mask]: " + ", ".join(f"{name} holds patient {patient}" for name, patient in held.items()))
print(f"warnings: {len(caught)}")

right = seen.pop("batch[2:]")
assert right == ([2, 3], [2, 3], [2, 3])
assert seen["batch[mask]"] == seen["torch.chunk"] == seen["torch.split"] == ([2, 3], [0, 1], [0, 1])
assert seen["batch[index]"] == seen["torch.index_select"] == ([3, 1], [0, 1], [0, 1])
assert seen["torch.flip"][1:] == seen["torch.roll"][1:] == ([0, 1, 2, 3], [0, 1, 2, 3])
assert held == {"patient0_kept": 2, "patient1_kept": 3} and not caught
PYTHON
