"""Diffusion sampling: noise, schedule, steps, guidance and inversion as plain functions on latents, and the seeds they draw from.

No image, mask file or transform belongs here.
"""
