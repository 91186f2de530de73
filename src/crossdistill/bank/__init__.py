"""Banks: the outputs of frozen networks, computed once, stored as arrays and read by sample id."""
