"""The gated layers of GLIGEN: their inputs, and how they are attached to a base."""
