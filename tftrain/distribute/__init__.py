"""Devices and workers: strategies, clusters, and how replicas share a batch."""
