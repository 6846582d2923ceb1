"""The training loop and what it keeps, shows and repeats."""
