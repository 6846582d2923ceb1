"""Panels of the page that teaches alone."""
