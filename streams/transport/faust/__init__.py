"""The Faust side of both drivers: application, agents and group membership."""
