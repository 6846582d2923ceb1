"""Training pictures: folders, batches, latents, and what is said of them before a training."""
