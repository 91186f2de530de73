"""Distil many teachers, of other modalities or domains, into one small student."""

__version__ = "0.1.0"
