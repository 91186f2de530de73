"""A recipe becomes a plan before anything trains: members, signals, banks, keys, and every fault."""
