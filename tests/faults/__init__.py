"""Breaks things under load, on real services; an independent checker accounts for every accepted start."""
