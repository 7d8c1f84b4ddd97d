"""Geometry of an edit: the grid and its anatomical plane, slices, regions of interest, squares around lesions, the intensity window.

Pure functions on tensors and affines. No model, random number or file belongs here.
"""
