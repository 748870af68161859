"""The version of vaekit."""

__version__ = "0.1.0"
