"""Stored layouts: one file and one byte map each; the registry is in edgesparse.packed."""
