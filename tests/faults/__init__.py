"""Tests that kill, starve and corrupt."""
