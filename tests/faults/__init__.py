"""Breaks things under load, on real services, and has an independent checker account for every accepted start."""
