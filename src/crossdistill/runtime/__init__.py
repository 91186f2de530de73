"""What every layer stands on: files, hashes, locks, devices, progress. Nothing here knows of distillation."""
