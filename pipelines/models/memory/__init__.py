"""Memory of a base: frozen weights in fewer bits, and parts that wait where there is more room."""
