"""Debugging: replay a step, compare runs, inspect data, find a rate."""
