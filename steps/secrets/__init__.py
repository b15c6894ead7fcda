"""Secrets and raw prompts: the rules, the search, and the redaction that every exit of the engine uses.

The fold cannot import this package: the table keeps the originals, and a new rule changes no row and no effect.
"""
