"""Planning: builds a recipe's members, signals, banks and keys, and finds its faults before training."""
