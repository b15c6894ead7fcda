"""Tests of the bridges to the neighbours."""
