"""Tests of Tasks."""
