"""Reading, mixing and synthesising sound."""
