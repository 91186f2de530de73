"""Gradients that are computed, kept or stored in another way than PyTorch does by itself."""
