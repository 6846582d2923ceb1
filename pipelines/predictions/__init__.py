"""Predictions of a denoiser at a step: their conditions and weights, and how they become one."""
