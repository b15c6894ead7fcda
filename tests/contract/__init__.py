"""Tests of everything that clients and subscribers rely on."""
