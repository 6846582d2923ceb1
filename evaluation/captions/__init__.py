"""Captions of sticker pictures: how exact they are, and what is learned by them."""
