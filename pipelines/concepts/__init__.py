"""Concepts: what was learned, as one file, and what of a base it changes."""
