"""Speed and memory against a loop around diffusers' pipeline and against the bare forward passes, on the same weights.

Equality of results is checked before anything is timed.
"""
