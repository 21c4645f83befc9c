"""Tests of strategies, clusters and workers."""
