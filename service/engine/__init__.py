"""Numpy arrays in, numpy arrays out: no HTTP, no image files, no settings, no metrics."""
