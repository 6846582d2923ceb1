"""Conditions: everything that can be asked of a picture, one file each. `pipelines.condition` has their protocol."""
