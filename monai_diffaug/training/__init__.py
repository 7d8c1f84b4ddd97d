"""Training: one loop, one type of labelled slice, one crop sampler; ``recipes`` holds one file per model.

Transforms and edits never import this folder.
"""
