"""A model's forward in C++, compiled for this machine on first use."""
