"""Reports: what a Trainer tells its Actions, and when an Action is due."""
