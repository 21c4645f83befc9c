"""Actions (callbacks) that ship with the library."""
