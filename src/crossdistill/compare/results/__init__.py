"""From finished cells to statistics and tables."""
