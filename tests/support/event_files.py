"""Event files of TensorBoard, read back."""

from tensorboard.backend.event_processing import event_accumulator


def events(directory):
  accumulator = event_accumulator.EventAccumulator(
    str(directory), size_guidance={'tensors': 0}
  )
  accumulator.Reload()
  return accumulator
