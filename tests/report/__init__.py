"""Tests of Reports and intervals."""
