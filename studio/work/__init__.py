"""What loads torch: requests and measurements carried out."""
