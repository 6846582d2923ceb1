"""What is kept: concepts, training pictures, uploads."""
