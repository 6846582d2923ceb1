"""The request: plain validated data. Nothing here needs torch."""
