"""The fold: one command and one row give the next row and its effects."""
