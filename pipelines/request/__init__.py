"""What is asked of a picture: plain validated data. Nothing here needs torch."""
