"""Version 1 of the Ray executor's service."""
