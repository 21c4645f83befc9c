"""Tests of summaries and metrics files."""
