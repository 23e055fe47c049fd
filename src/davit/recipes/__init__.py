"""Complete training runs, one function each."""
