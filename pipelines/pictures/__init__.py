"""Pictures: files, tensors, grids and contact sheets."""
