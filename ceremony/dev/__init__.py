"""`ceremony dev`: the engine with everything it needs, in one folder."""
