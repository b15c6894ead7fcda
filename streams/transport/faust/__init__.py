"""The Faust side of both drivers: agents and group membership."""
