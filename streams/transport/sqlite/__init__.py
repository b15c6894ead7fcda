"""The embedded driver: the whole log in one SQLite file."""
