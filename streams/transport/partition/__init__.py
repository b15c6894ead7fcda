"""One partition of an agent: reading, rows, checkpoints; independent of Faust and of the log."""
