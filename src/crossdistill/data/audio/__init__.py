"""Reads, mixes and synthesises sound."""
