#!/usr/bin/env bash
# nibabel 5.4.2, SimpleITK 2.5.7: a label map of small whole numbers, saved as uint8, comes back with another class.
#
# Input:    a float64 array with the classes 0, 1, 2, 4 (the classes of brain tumour data sets), as np.where or get_fdata give it,
#           saved with img.set_data_dtype(np.uint8). Every value fits uint8.
# Expected: the bytes 0, 1, 2, 4 on disk; 0, 1, 2, 4 when the file is read.
# Happens:  the array is float, the file is uint8, so nibabel stretches the values to the full range of uint8 and writes a scale slope
#           of 4/255. 2 would be the byte 127.5; it is stored as 127 and reads as 1.992. `data == 2` is empty and `data.astype(np.uint8)`
#           makes class 2 class 1. SimpleITK.ReadImage(path, sitk.sitkUInt8) gives class 1 too. No warning.
#           With the classes 0, 1, 2, 3 everything is right (255 is a multiple of 3), so a test with three classes does not show it.
#           A header copied from an int16 scan does the same: the largest class reads as 3.99998 and truncates to 3.
# Matters:  all voxels of one tumour class are counted as another; setting the data type of the image is a usual way to write a label.
# Way out:  nib.Nifti1Image(np.rint(data).astype(np.uint8), affine); on reading, np.rint before the cast.
#
# Output seen:
#   classes 0 1 2 3, uint8: slope 0.011765, read and cast [0, 1, 2, 3], SimpleITK as uint8 [0, 1, 2, 3], voxels in another class 0 %
#   classes 0 1 2 4, uint8: slope 0.015686, read and cast [0, 1, 4], SimpleITK as uint8 [0, 1, 4], voxels in another class 25 %
#   classes 0 1 2 4, int16 header of a scan: slope 0.000061, read and cast [0, 1, 2, 3], voxels in another class 25 %
#   voxels equal to 2 in the second file: 0 of 432; their value: 1.992157
#   with the array cast before it is saved: [0, 1, 2, 4]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet nibabel==5.4.2 SimpleITK==2.5.7 numpy==2.4.6
cd "$work"
venv/bin/python -W error - <<'PYTHON'
import nibabel as nib
import numpy as np
import SimpleITK as sitk


def save(classes, dtype, header=None):
    label = np.resize(np.array(classes, dtype=float), (12, 12, 12))
    image = nib.Nifti1Image(label, np.eye(4), header)
    image.set_data_dtype(dtype)
    nib.save(image, "label.nii")
    return label, nib.load("label.nii")


def by_simpleitk():
    return sitk.GetArrayFromImage(sitk.ReadImage("label.nii", sitk.sitkUInt8)).T


results = {}
for classes in ([0, 1, 2, 3], [0, 1, 2, 4]):
    label, image = save(classes, np.uint8)
    cast = image.get_fdata().astype(np.uint8)
    wrong = (cast != label).mean()
    print(
        f"classes {' '.join(map(str, classes))}, uint8: slope {image.dataobj.slope:.6f}, read and cast {np.unique(cast).tolist()}, "
        f"SimpleITK as uint8 {np.unique(by_simpleitk()).tolist()}, voxels in another class {wrong:.0%}".replace("%", " %")
    )
    results[classes[-1]] = cast, by_simpleitk(), label, image.get_fdata()

scan = nib.Nifti1Image(np.zeros((12, 12, 12), np.int16), np.eye(4))
label, image = save([0, 1, 2, 4], np.int16, scan.header)
cast16 = image.get_fdata().astype(np.uint8)
print(
    f"classes 0 1 2 4, int16 header of a scan: slope {image.dataobj.slope:.6f}, read and cast {np.unique(cast16).tolist()}, "
    f"voxels in another class {(cast16 != label).mean():.0%}".replace("%", " %")
)

cast, itk_cast, label, read = results[4]
second = read[label == 2]
print(f"voxels equal to 2 in the second file: {(read == 2).sum()} of {second.size}; their value: {second[0]:.6f}")
nib.save(nib.Nifti1Image(label.astype(np.uint8), np.eye(4)), "right.nii")
right = np.unique(nib.load("right.nii").get_fdata()).astype(int).tolist()
print(f"with the array cast before it is saved: {right}")

assert (results[3][0] == results[3][2]).all(), "three classes: right"
assert (cast[label == 2] == 1).all() and (itk_cast[label == 2] == 1).all(), "class 2 becomes class 1"
assert not (read == 2).any() and (cast16[label == 4] == 3).all()
assert right == [0, 1, 2, 4]
PYTHON
