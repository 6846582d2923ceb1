"""People, files and processes: the command line, the demo, and what reports to them. Never imports torch by itself."""
