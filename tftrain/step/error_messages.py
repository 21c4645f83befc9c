"""Error messages: translates errors of TensorFlow and Keras, with advice."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib

import tensorflow as tf

from tftrain import errors
from tftrain.interop import check_numerics


@contextlib.contextmanager
def explained(what: Callable[[], str]) -> Iterator[None]:
  """Translates errors that TensorFlow and Keras raise for a batch.

  Args:
    what: Returns the place and subject, `place: subject`, for the message;
      called only on an error.

  Raises:
    NumericsError: If `check_numerics` found NaN or Inf.
    InputError: If the model or loss cannot take the batch.
    OutOfMemoryError: If device memory is exhausted.
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
    told = check_numerics.describe_error(error)
    if told:
      where = what().partition(':')[0]
      raise errors.NumericsError(f'{where}: {told}') from error
    raise errors.InputError(f'{what()}: {errors.one_line(error)}') from error
  except tf.errors.ResourceExhaustedError as error:
    raise errors.OutOfMemoryError(
      f'{what()}: {errors.one_line(error)}; make the batch smaller, or give '
      'Update.accumulate or Update.remat'
    ) from error
