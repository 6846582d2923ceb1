"""Larger pictures: the second pass of a request in tiles, and the networks that enlarge."""
