"""Tasks: the models, losses and optimizers that a Trainer trains."""
