"""Training: the Trainer and its compiled inner loop."""
