"""Long work: ordered, recorded, done by other processes."""
