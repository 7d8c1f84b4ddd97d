"""MONAI Bundles shipped as package data, and the check of a Bundle config.

Nothing here trains or loads a model.
"""
