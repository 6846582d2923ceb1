"""The commands of `studio`, one file each. Importable without torch."""
