"""The run directory: its files, its data set, its weights."""
