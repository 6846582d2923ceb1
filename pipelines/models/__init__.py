"""Base models: loading, text encoders, schedulers and UNets; and `pocket`, which is shipped."""

from __future__ import annotations

from pathlib import Path

POCKET = Path(__file__).parent / "pocket"
"""Folder of the base model that is shipped, in the layout of diffusers."""
