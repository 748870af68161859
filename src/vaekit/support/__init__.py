"""Shared utilities: errors, lazy imports, atomic files, devices, distributed processes, the console."""
