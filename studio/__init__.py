"""People, files and processes: command line, server, page and jobs. Never imports torch by itself."""
