"""Training pictures: folders, batches, latents, and checks before a training."""
