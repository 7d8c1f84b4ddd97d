"""Masks and labels: boxes, lesion shapes, edge maps, soft edges, normal tissue, the painted label.

Functions on arrays. No model and no dictionary key belongs here.
"""
