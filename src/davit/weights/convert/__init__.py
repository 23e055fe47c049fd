"""One file for each source of foreign weights."""
