"""Sources: read single examples from files, memory and generators."""
