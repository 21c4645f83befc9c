"""Tests of files, signals and processes."""
