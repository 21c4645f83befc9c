"""Tests of the Actions that come along."""
