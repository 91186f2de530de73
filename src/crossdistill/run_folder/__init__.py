"""The files of a run: its folder and lock, checkpoints, environment, initial weights and logs."""
