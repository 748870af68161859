"""Readers of each source format, downloads, and the catalogue of named data sets."""
