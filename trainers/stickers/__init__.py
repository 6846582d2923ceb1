"""The sticker world of `pocket`: scenes with exact captions, boxes and masks."""
