"""A task is a loss and a metric."""
