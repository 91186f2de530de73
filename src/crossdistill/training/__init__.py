"""The loops: run a recipe, fit a stage, validate and evaluate."""
