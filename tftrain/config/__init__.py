"""Configuration: reads, checks and applies gin files."""
