"""Compiled Keras models: what `compile` was given, as arguments of a Task."""

from collections.abc import Mapping
from typing import Any

from absl import logging
import keras
import tensorflow as tf

from tftrain import errors
from tftrain.interop import keras_optimizer

_REWRITES = {
  'train_step': (
    'write it as `class MyTask(tftrain.Task)` with `def loss(self, batch, '
    'training): return tftrain.Loss(values)`, or with a train_step(self, '
    'batch) that calls self.minimize(self.loss, batch)'
  ),
  'test_step': (
    'write it as `class MyTask(tftrain.Task)` with `def loss(self, batch, '
    'training)`, which is called with training=False'
  ),
  'predict_step': 'override serve(self, features) of a SupervisedTask',
  'compute_metrics': 'give SupervisedTask metrics=..., functions or objects',
}


def check_overrides(model: Any, *, own_loss: bool = False) -> None:
  """Raises TaskError if a model has steps of its own, which nothing would call.

  Args:
    model: A Keras model, or any callable.
    own_loss: Whether a `compute_loss` of its own is used.
  """
  name = type(model).__name__
  for method, rewrite in _REWRITES.items():
    if _overrides(model, method):
      raise errors.TaskError(
        f'{name} has a {method} of its own, which SupervisedTask does not '
        f'call; {rewrite}'
      )
  if has_own_loss(model) and not own_loss:
    raise errors.TaskError(
      f'{name} has a compute_loss of its own, which SupervisedTask does not '
      'call; compile the model and use SupervisedTask.from_compiled(model), or '
      'write a Task with that loss'
    )


def has_own_loss(model: Any) -> bool:
  return _overrides(model, 'compute_loss')


def _overrides(model: Any, method: str) -> bool:
  if not isinstance(model, keras.Model):
    return False
  own = getattr(type(model), method)
  kinds = (keras.Model, keras.Sequential)
  return all(own is not getattr(kind, method) for kind in kinds)


def arguments(model: Any) -> dict[str, Any]:
  """Returns the arguments of SupervisedTask that `compile` was given.

  Raises:
    TaskError: If the model is not compiled, or was compiled with an option that
      this library does otherwise.
  """
  name = type(model).__name__
  if not getattr(model, 'compiled', False):
    raise errors.TaskError(
      f'{name} is not compiled; call model.compile(optimizer, loss), or give '
      'SupervisedTask(model, loss, optimizer)'
    )
  check_overrides(model, own_loss=True)
  _check_options(model)
  loss, metrics = model._compile_loss, model._compile_metrics
  if loss is None and not has_own_loss(model):
    raise errors.TaskError(
      f'{name} is compiled without a loss; give compile(loss=...), or write a '
      'Task'
    )
  return {
    'loss': no_loss if loss is None else loss._user_loss,
    'loss_weights': None if loss is None else loss._user_loss_weights,
    'optimizer': _optimizer(model),
    'metrics': None if metrics is None else metrics._user_metrics,
    'weighted_metrics': (
      None if metrics is None else metrics._user_weighted_metrics
    ),
  }


def no_loss(labels: Any, predictions: Any) -> tf.Tensor:
  """The loss of an output of which `compute_loss` knows the loss."""
  del labels
  return tf.zeros(tf.shape(tf.nest.flatten(predictions)[0])[:1])


def compute_loss(
  model: Any, features: Any, labels: Any, predictions: Any, *, training: bool
) -> tf.Tensor:
  """Returns the scalar of the model's own `compute_loss`."""
  loss: tf.Tensor = model._compute_loss(
    features, labels, predictions, None, training=training
  )
  return loss


def check_alone(model: Any, weights: Any, accumulate: int) -> None:
  """Raises TaskError where the scalar of an own `compute_loss` is not exact."""
  replicas = tf.distribute.get_strategy().num_replicas_in_sync
  found = {
    f'{replicas} replicas': replicas > 1,
    f'accumulate={accumulate}': accumulate > 1,
    'weights in the batch': weights is not None,
  }
  for what, is_so in found.items():
    if is_so:
      raise errors.TaskError(
        f'{type(model).__name__}.compute_loss returns a scalar, which is not '
        f'exact with {what}; write a Task whose loss returns tftrain.Loss of '
        'values [batch, ...]'
      )


def _optimizer(model: Any) -> Any:
  optimizer = model.optimizer
  wrapped = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
  if wrapped and model.dtype_policy.name == 'mixed_float16':
    # What auto_scale_loss made; Update.loss_scale='auto' does the same.
    optimizer = optimizer.inner_optimizer
  keras_optimizer.check(optimizer, f'compile of {type(model).__name__}')
  return optimizer


def _check_options(model: Any) -> None:
  refused: Mapping[str, tuple[bool, str]] = {
    'run_eagerly=True': (
      bool(model.run_eagerly),
      'call tf.config.run_functions_eagerly(True), or give the command '
      '--run_eagerly',
    ),
    f'steps_per_execution={model.steps_per_execution}': (
      model.steps_per_execution != 1,
      'a Trainer chooses it, or give Trainer(steps_per_loop=...)',
    ),
    'jit_compile=True': (
      bool(model.jit_compile) and not model._resolve_auto_jit_compile(),
      "give Trainer(update=tftrain.Update(jit='block'))",
    ),
  }
  for option, (is_given, way) in refused.items():
    if is_given:
      raise errors.TaskError(
        f'compile({option}) is no property of a Task; leave it out: {way}'
      )
  if model.jit_compile:
    logging.warning(
      'compile() chose jit_compile=True; here it is an option of the run, '
      "Trainer(update=tftrain.Update(jit='block'))."
    )
