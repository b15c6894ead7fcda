"""The client of Valkey."""
