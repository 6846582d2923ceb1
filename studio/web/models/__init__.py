"""Models on the page: the choice of a base, and files of other programs taken in."""
