"""Readers of the official layouts of labelled recordings, one family a file."""
