"""Benchmarks of `studio score`, one file each."""
