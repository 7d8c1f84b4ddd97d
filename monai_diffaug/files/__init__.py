"""Files in and out: pictures, volumes, DICOM series, previews, and measures of what a written result keeps.

No model and no transform belongs here.
"""
