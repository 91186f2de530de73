"""Alternatives to PyTorch's computation and storage of gradients: immediate, factored, and in mapped files."""
