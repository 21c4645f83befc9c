"""The command line: flags, modes and exit codes."""
