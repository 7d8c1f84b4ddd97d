"""Speed and memory against a loop around diffusers' pipeline and against the bare forward passes, with the same weights.

Results are compared before anything is timed; without equal results no speed is reported. No model or transform is defined here.
"""
