"""Captions of pictures: models that write them, and their wording for training."""
