"""Trainings whose result is a part of a base: gated layers and 9-channel UNets."""
