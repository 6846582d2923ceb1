"""Parts of a concept: each one kind of thing that it adds to a base, one file each."""
