"""The command line: one typed function per command, the words they share, and their error messages. No logic."""
