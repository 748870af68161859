"""The run directory: its files, its data found again, its weights loaded."""
