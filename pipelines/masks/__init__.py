"""Masks: read from files, or made from clicks, boxes and strokes."""
