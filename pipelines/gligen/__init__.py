"""The gated layers of GLIGEN: what they read, and how a base is lent some."""
