"""The command line: one typed function for each verb, their words and their error messages. No logic."""
