"""Tests of gin files and their checks."""
