"""Ceremony definitions: loading, validation, drawing, and their JSON Schemas."""
