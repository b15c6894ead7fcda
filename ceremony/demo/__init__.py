"""`ceremony demo`: many ceremonies through a development stack, each accounted for."""
