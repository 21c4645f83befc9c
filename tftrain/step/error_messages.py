"""Error messages: TensorFlow's errors in a model, with what to change."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib

import tensorflow as tf

from tftrain import errors
from tftrain.interop import check_numerics


@contextlib.contextmanager
def explained(what: Callable[[], str]) -> Iterator[None]:
  """Turns what TensorFlow and Keras say of a batch into an error of ours.

  Args:
    what: Says where and of what; asked only if there is an error.
  """
  try:
    yield
  except errors.Error:
    raise
  except (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    ValueError,
    TypeError,
  ) as error:
    told = check_numerics.told(error)
    if told:
      where = what().partition(':')[0]
      raise errors.NumericsError(f'{where}: {told}') from error
    raise errors.InputError(f'{what()}: {errors.one_line(error)}') from error
  except tf.errors.ResourceExhaustedError as error:
    raise errors.OutOfMemoryError(
      f'{what()}: {errors.one_line(error)}; make the batch smaller, or give '
      'Update.accumulate or Update.remat'
    ) from error
