"""Evaluation: models and trainings in, figures out. One file for each question."""
