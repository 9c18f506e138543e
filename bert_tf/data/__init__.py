"""Examples: read from files, tokenized, and cut into batches of static shape."""
