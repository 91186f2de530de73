"""Grids of runs under equal conditions, and the tables that they end in."""
