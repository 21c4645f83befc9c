"""Checkpointing: saves, verifies, retains and restores training state."""
