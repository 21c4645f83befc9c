"""Tests of replay, dry run and comparison."""
