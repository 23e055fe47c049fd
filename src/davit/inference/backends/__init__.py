"""What computes a forward pass: a file each."""
