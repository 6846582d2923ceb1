"""Training: examples and a base model in, a concept out. One loop, one file for each method."""
