"""Rematerialization: trades time for memory, by layer (Chen et al. 2016).

The backward pass computes the activations of a layer again, instead of keeping
them.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import copy
from typing import Any

from keras.src.backend.common import global_state  # no public API
import tensorflow as tf

from tftrain import errors
from tftrain.interop import layer_losses
from tftrain.interop import patching
from tftrain.interop import rng
from tftrain.interop import tracking
from tftrain.step import parameter_groups


def recomputed(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `call` with a gradient that computes the layer again.

  Both runs see the same arguments, masks, dropout seeds and `training`. The
  gradient flows to weights and arguments, not to captured tensors.

  Args:
    layer: The Keras layer.
    call: The layer's `call`.
  """
  owned = _owned(layer)
  parts = list(owned.sublayers.values())

  def call_and_forget(*args: Any, **kwargs: Any) -> Any:
    # Numbers only: recompute_grad adds zero to each of its arguments.
    given = _Parcel((args, kwargs), lambda d: d not in (tf.bool, tf.string))
    drawn = [generator.next() for generator in owned.seeds]
    ambient = _ambient()
    runs: list[_Parcel] = []

    def again(*tensors: tf.Tensor) -> list[tf.Tensor]:
      own_args, own_kwargs = given.filled(tensors)
      with (
        _restored(ambient if runs else {}),
        rng.fixed(owned.seeds, drawn),
        layer_losses.suspended(),
        patching.overridden((part, '_losses', []) for part in parts),
      ):
        outputs = call(*own_args, **own_kwargs)
        losses = [part._losses for part in parts]
      made = _Parcel((outputs, losses), lambda d: d.is_floating or d.is_complex)
      runs.append(made)
      return made.tensors

    tensors = tf.recompute_grad(again)(*given.tensors)
    outputs, losses = runs[0].filled(tensors)
    for part, terms in zip(parts, losses, strict=True):
      part.add_loss(terms)
    return outputs

  return call_and_forget


def chosen(owned: tracking.Owned, pattern: str | None) -> dict[str, Any]:
  """Returns name -> layer of the outermost layers that match.

  Layers nested in a matching layer are not rematerialized twice.
  """
  matched = {
    name: layer
    for name, layer in owned.sublayers.items()
    if parameter_groups.matches(pattern, name)
  }
  inner = {
    id(part)
    for layer in matched.values()
    for part in layer._flatten_layers(include_self=False)
  }
  return {n: layer for n, layer in matched.items() if id(layer) not in inner}


def check(layers: Mapping[str, Any]) -> None:
  """Raises ConfigError if a layer has state, so that it must not run twice.

  Args:
    layers: Name -> layer to rematerialize.
  """
  for name, layer in layers.items():
    owned = _owned(layer)
    fine = {id(generator.state) for generator in owned.seeds}
    found = dict(owned.variables)
    for part in owned.sublayers.values():
      fine |= {id(v) for v in part._trainable_variables}  # even if frozen
      found |= {f'/{m.name}': v for m in part._metrics for v in m.variables}
    for state, variable in found.items():
      if not variable.trainable and id(variable) not in fine:
        raise errors.ConfigError(
          f'Update.remat: {name} holds {state[1:]}, which is state; running '
          'the layer twice could change it twice; choose other layers'
        )


def _owned(layer: Any) -> tracking.Owned:
  owned = tracking.Owned()
  owned.visit('', layer)
  return owned


class _Parcel:
  """A nested structure whose tensors of some dtypes can be replaced."""

  def __init__(self, structure: Any, takes: Callable[[tf.DType], bool]):
    self._structure, self._takes = structure, takes
    self._leaves = tf.nest.flatten(structure, expand_composites=True)
    self.tensors = [leaf for leaf in self._leaves if self._is_taken(leaf)]

  def _is_taken(self, leaf: Any) -> bool:
    return isinstance(leaf, tf.Tensor) and self._takes(leaf.dtype)

  def filled(self, tensors: Sequence[tf.Tensor]) -> Any:
    """Returns the structure with other tensors, under the same Keras masks."""
    rest, leaves = iter(tensors), []
    for leaf in self._leaves:
      leaves.append(next(rest) if self._is_taken(leaf) else leaf)
      if getattr(leaf, '_keras_mask', None) is not None:
        leaves[-1]._keras_mask = leaf._keras_mask
    return tf.nest.pack_sequence_as(self._structure, leaves, True)


def _ambient() -> dict[str, Any]:
  """Returns Keras's call context (`training`) and autocast scope (dtype)."""
  state = vars(global_state.GLOBAL_STATE_TRACKER)
  names = ('current_call_ctx', 'autocast_scope')
  return {name: copy.copy(state.get(name)) for name in names}


@contextlib.contextmanager
def _restored(ambient: dict[str, Any]) -> Iterator[None]:
  state = vars(global_state.GLOBAL_STATE_TRACKER)
  before = {name: state.get(name) for name in ambient}
  state.update(ambient)
  try:
    yield
  finally:
    state.update(before)
