"""Sources: single examples from files, memory and generators."""
