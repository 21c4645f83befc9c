"""Platform: files, signals, timeouts, locks and other services of the operating system."""
