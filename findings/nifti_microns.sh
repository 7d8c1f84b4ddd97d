#!/usr/bin/env bash
# nibabel 5.4.2 and SimpleITK 2.5.7: one NIfTI file, two readers, voxel sizes a thousand times apart.
#
# Input:    a valid NIfTI file of a micro-CT, 7 x 7 x 30 micrometres per voxel, whose header says so (xyzt_units = micron).
# Expected: one size in millimetres, whatever reads the file; in NIfTI the unit is part of the size.
# Happens:  SimpleITK (and ITK) turn sizes and origin into millimetres. nibabel's affine and zooms are the file's bare numbers: 7 "mm".
#           Both are silent. With metres it is the other way round.
#           MONAI's LoadImage has a reader of each kind (NibabelReader, ITKReader), so the affine of a sample depends on which of the two
#           packages reads it; Spacing, sizes in mm and surface distances follow it.
# Matters:  a file that SimpleITK writes back is 1000 times smaller for nibabel than the file that it was made from; a mask and its scan
#           do not overlap any more.
# Way out:  image.header.get_xyzt_units() and scale the affine, before anything is measured in mm.
#
# Output seen:
#   unit mm:     nibabel 0.007 x 0.007 x 0.03 mm, SimpleITK 0.007 x 0.007 x 0.03 mm
#   unit micron: nibabel 7 x 7 x 30 mm, SimpleITK 0.007 x 0.007 x 0.03 mm
#   unit meter:  nibabel 7e-06 x 7e-06 x 3e-05 mm, SimpleITK 0.007 x 0.007 x 0.03 mm
#   SimpleITK's copy of the second file: unit mm, nibabel 0.007 x 0.007 x 0.03 mm
#   written to standard error: nothing
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet nibabel==5.4.2 SimpleITK==2.5.7 numpy==2.4.6
cd "$work"
cat > read_both.py <<'PYTHON'
import nibabel as nib
import numpy as np
import SimpleITK as sitk


def show(size):
    return " x ".join(f"{float(s):.3g}" for s in size) + " mm"


size_mm = np.array([0.007, 0.007, 0.03])
scan = np.random.default_rng(0).integers(0, 1000, (8, 9, 10)).astype(np.int16)
sizes = {}
for unit, per_mm in (("mm", 1.0), ("micron", 1000.0), ("meter", 0.001)):
    affine = np.diag([*(size_mm * per_mm), 1.0])
    affine[:3, 3] = np.array([-0.03, -0.03, -0.1]) * per_mm
    image = nib.Nifti1Image(scan, affine)
    image.header.set_xyzt_units(xyz=unit)
    nib.save(image, f"{unit}.nii")
    loaded = nib.load(f"{unit}.nii")
    assert loaded.header.get_xyzt_units()[0] == unit
    by_nibabel = np.sqrt((loaded.affine[:3, :3] ** 2).sum(0))
    by_itk = np.array(sitk.ReadImage(f"{unit}.nii").GetSpacing())
    sizes[unit] = by_nibabel, by_itk
    print(f"{f'unit {unit}:':12} nibabel {show(by_nibabel)}, SimpleITK {show(by_itk)}")

sitk.WriteImage(sitk.ReadImage("micron.nii"), "copy.nii")
copy = nib.load("copy.nii")
print(f"SimpleITK's copy of the second file: unit {copy.header.get_xyzt_units()[0]}, nibabel {show(copy.header.get_zooms())}")

assert all(np.allclose(by_itk, size_mm, rtol=1e-4) for _, by_itk in sizes.values())
assert np.allclose(sizes["micron"][0], size_mm * 1000, rtol=1e-4) and np.allclose(sizes["meter"][0], size_mm / 1000, rtol=1e-4)
assert np.allclose(copy.header.get_zooms(), size_mm, rtol=1e-4)
PYTHON
venv/bin/python read_both.py 2> errors.txt || { cat errors.txt >&2; exit 1; }
printf 'written to standard error: %s\n' "$([ -s errors.txt ] && cat errors.txt || echo nothing)"
[ ! -s errors.txt ]
