"""Families of base models, one file each; all that differs between them is behind `Family`, and nowhere else."""
