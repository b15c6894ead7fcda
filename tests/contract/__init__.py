"""Tests of what the outside world relies on."""
