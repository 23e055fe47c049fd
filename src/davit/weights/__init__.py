"""From and to weight files: ours, and every public format."""
