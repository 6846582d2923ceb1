"""Base models: how they are loaded, their text encoders, schedulers and UNets; and `pocket`, which is shipped."""
