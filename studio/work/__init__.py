"""Work that loads torch: requests and measurements carried out."""
