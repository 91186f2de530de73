"""Where the cells of a comparison run: processes here, Ray, Slurm; and how they talk."""
