"""Statistics and tables of finished cells."""
