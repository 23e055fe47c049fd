"""One file per source of weights, each an invertible table; `rename` is the one engine that reads them."""
