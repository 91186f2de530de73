"""Executors of the cells of a comparison: local processes, Ray and Slurm, and their messages."""
