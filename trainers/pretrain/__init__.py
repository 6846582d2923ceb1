"""Pre-training of `pocket`, the base model in this repository: autoencoder, judge, text encoder and UNet.

`python -m trainers.pretrain` trains whatever is missing, resumes what was interrupted, and writes the model in the
diffusers layout; `python -m trainers.pretrain score` prints its scores as JSON.
"""
