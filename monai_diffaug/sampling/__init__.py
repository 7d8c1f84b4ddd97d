"""Diffusion algorithms as plain functions on latents."""
