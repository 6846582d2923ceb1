"""Judges and detectors that look at one picture."""
