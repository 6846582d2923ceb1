"""The library: concepts, training pictures, uploads."""
