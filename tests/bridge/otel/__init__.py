"""Tests of the export of spans."""
