"""Services for all layers: files, hashes, locks, devices, progress. Nothing here depends on distillation."""
