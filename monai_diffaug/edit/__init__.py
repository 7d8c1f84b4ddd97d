"""One edit from beginning to end: options, stack of slices, denoising, decoding, record.

Code enters here only if every edit runs through it; dictionary keys belong to ``transforms``.
"""
