"""A trained run for others to use: a file for each format."""
