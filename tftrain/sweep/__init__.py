"""Sweeps: many runs of one recipe, each with other values.

The controller imports no TensorFlow. Each trial is a process of its own,
`<command> --sweep_dir=D --trial_index=N`, whoever starts it.
"""
