"""Conditions: everything that can be asked of a picture, one file each; `pipelines.condition` says what one is."""
