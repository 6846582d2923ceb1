"""What the page does with models: the choice of a base, and files of other programs taken in."""
