#!/usr/bin/env bash
# SimpleITK 2.5.7: a CT series with a tilted gantry is read as a straight box; its last slice lands centimetres from where it was taken.
#
# Input:    a regular CT series of 40 slices, 3 mm apart along the table, gantry tilted by 20 degrees (usual in head CT, to keep the eyes
#           out of the beam). Position and orientation of every slice are in the DICOM files; the stack is a sheared box.
# Expected: the shear, or an error, as an image of SimpleITK cannot hold a shear (its directions must be orthonormal).
# Happens:  ImageSeriesReader takes the slices' normal as the third axis and the distance between slices along the table as its
#           spacing. Each slice is moved from where its own header says, the more the farther it is from the first. No warning.
#           What is computed from the image afterwards (volumes in mm, registration, overlays with RT structures or with another series,
#           a NIfTI file written from it) is wrong in the same way. ITK's Python package shares the reader.
# Matters:  millimetre coordinates of a lesion high in the head are off by two to four centimetres.
# Way out:  compare TransformIndexToPhysicalPoint of the last slice with its ImagePositionPatient; build the sheared affine from the
#           positions (nibabel can hold it), or resample the series to a straight grid first.
#
# Output seen:
#   spacing (1.0, 1.0, 3.0) mm, third axis (0.0, -0.342, 0.94)
#   slice 10: header (-60.0, -60.0, 30.0), image (-60.0, -70.3, 28.2), 10.4 mm apart
#   slice 39: header (-60.0, -60.0, 117.0), image (-60.0, -100.0, 109.9), 40.6 mm apart
#   voxel volume 3.000 mm3 in the image, 2.819 mm3 by the slices' positions
#   written to standard error: nothing
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet SimpleITK==2.5.7 pydicom==3.0.2 numpy==2.4.6
cd "$work"
cat > write_series.py <<'PYTHON'
import math
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

tilt = math.radians(20)
series, study, frame = generate_uid(), generate_uid(), generate_uid()
Path("series").mkdir()
for index in range(40):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
    ds.PatientName, ds.PatientID, ds.Modality = "Phantom", "1", "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SeriesNumber, ds.InstanceNumber = 1, index + 1
    ds.GantryDetectorTilt = 20
    ds.ImagePositionPatient = [-60, -60, 3 * index]
    ds.ImageOrientationPatient = [1, 0, 0, 0, round(math.cos(tilt), 6), round(math.sin(tilt), 6)]
    ds.PixelSpacing, ds.SliceThickness = [1, 1], 3
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = 64
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    ds.PixelData = np.full((64, 64), index, "<i2").tobytes()
    ds.save_as(f"series/{index:03d}.dcm", enforce_file_format=True)
PYTHON
cat > read_series.py <<'PYTHON'
import numpy as np
import pydicom
import SimpleITK as sitk

reader = sitk.ImageSeriesReader()
names = reader.GetGDCMSeriesFileNames("series")
reader.SetFileNames(names)
image = reader.Execute()

third = image.GetDirection()[2::3]
print(f"spacing {tuple(round(s, 3) for s in image.GetSpacing())} mm, third axis {tuple(round(d, 3) + 0.0 for d in third)}")
apart = {}
for index in (0, 10, 39):
    slice_ = pydicom.dcmread(names[index])
    assert int(slice_.pixel_array[0, 0]) == image[0, 0, index] == index, "the slices are in the right order"
    true = np.array(slice_.ImagePositionPatient, dtype=float)
    got = np.array(image.TransformIndexToPhysicalPoint((0, 0, index)))
    apart[index] = np.linalg.norm(true - got)
    if index:
        show = [tuple((p.round(1) + 0.0).tolist()) for p in (true, got)]
        print(f"slice {index}: header {show[0]}, image {show[1]}, {apart[index]:.1f} mm apart")
orientation = np.array(slice_.ImageOrientationPatient, dtype=float)
volume = abs(np.linalg.det(np.stack([orientation[:3], orientation[3:], [0, 0, 3]])))
print(f"voxel volume {np.prod(image.GetSpacing()):.3f} mm3 in the image, {volume:.3f} mm3 by the slices' positions")

assert apart[0] < 1e-6 and 10 < apart[10] < 11 and 40 < apart[39] < 41
assert volume < 2.83 < 2.99 < np.prod(image.GetSpacing())
PYTHON
venv/bin/python write_series.py
venv/bin/python read_series.py 2> errors.txt || { cat errors.txt >&2; exit 1; }
printf 'written to standard error: %s\n' "$([ -s errors.txt ] && cat errors.txt || echo nothing)"
[ ! -s errors.txt ]
