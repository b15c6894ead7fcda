"""Version 1 of the ceremony engine's front."""
