"""What a run writes and reads again: its folder, checkpoints, environment, first weights and logs."""
