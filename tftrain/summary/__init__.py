"""Metric writers: TensorBoard summaries, JSON lines, CSV and progress."""
