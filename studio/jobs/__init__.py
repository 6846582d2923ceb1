"""Long work: asked for, kept in a record, done by other processes."""
