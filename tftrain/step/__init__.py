"""One training step: gradients, clipping, loss scale, update and EMA."""
