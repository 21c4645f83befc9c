"""Rematerialisation: memory for time, layer by layer (Chen et al. 2016).

What a layer computed is not kept for the backward pass but computed again.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import copy
from typing import Any

from keras.src.backend.common import global_state  # there is no public way
import tensorflow as tf

from tftrain import errors
from tftrain import seeds
from tftrain import variables as variables_lib


def recomputed(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
  """`call` of `layer` such that its gradient computes it again.

  Both runs see the same arguments, masks, dropout seeds and `training`. The
  gradient reaches weights and arguments, not tensors found elsewhere.
  """
  owned = _owned(layer)
  parts = list(owned.sublayers.values())

  def call_and_forget(*args: Any, **kwargs: Any) -> Any:
    given = _Parcel((args, kwargs), _is_number)
    drawn = [generator.next() for generator in owned.seeds]
    ambient = _ambient()
    runs: list[_Parcel] = []

    def again(*tensors: tf.Tensor) -> list[tf.Tensor]:
      own_args, own_kwargs = given.filled(tensors)
      with (
        _restored(ambient if runs else {}),
        seeds.fixed(owned.seeds, drawn),
        _losses_taken(parts) as losses,
      ):
        outputs = call(*own_args, **own_kwargs)
      runs.append(_Parcel((outputs, losses), _has_gradient))
      return runs[-1].tensors or [tf.zeros([])]  # it has to return something

    tensors = tf.recompute_grad(again)(*given.tensors)
    outputs, losses = runs[0].filled(tensors)
    for part, terms in zip(parts, losses, strict=True):
      part.add_loss(terms)
    return outputs

  return call_and_forget


def check(names: Sequence[str], layers: Sequence[Any]) -> None:
  """Raises ConfigError for layers that must not run twice."""
  for name, layer in zip(names, layers, strict=True):
    owned = _owned(layer)
    fine = {id(generator.state) for generator in owned.seeds}
    for part in owned.sublayers.values():
      fine |= {id(v) for v in part._trainable_variables}  # frozen ones too
    for state, variable in owned.variables.items():
      if not variable.trainable and id(variable) not in fine:
        raise errors.ConfigError(
          f'Update.remat: {name} holds {state[1:]}, which is not a weight but '
          'state, and running the layer twice would change it twice; choose '
          'other layers'
        )


def _owned(layer: Any) -> variables_lib.Owned:
  owned = variables_lib.Owned()
  owned.visit('', layer)
  return owned


class _Parcel:
  """A nested structure from which some tensors are taken out.

  Args:
    structure: May hold None, and what is no tensor.
    takes: Which dtypes.
  """

  def __init__(self, structure: Any, takes: Callable[[tf.DType], bool]):
    self._structure, self._takes = structure, takes
    self._leaves = tf.nest.flatten(structure, expand_composites=True)
    self.tensors = [leaf for leaf in self._leaves if self._is_taken(leaf)]

  def _is_taken(self, leaf: Any) -> bool:
    return isinstance(leaf, tf.Tensor) and self._takes(leaf.dtype)

  def filled(self, tensors: Sequence[tf.Tensor]) -> Any:
    """The structure with other tensors, which get the same Keras masks."""
    rest, leaves = iter(tensors), []
    for leaf in self._leaves:
      leaves.append(next(rest) if self._is_taken(leaf) else leaf)
      if getattr(leaf, '_keras_mask', None) is not None:
        leaves[-1]._keras_mask = leaf._keras_mask
    return tf.nest.pack_sequence_as(self._structure, leaves, True)


def _is_number(dtype: tf.DType) -> bool:
  """Only such pass: recompute_grad adds zero to them, to delay what follows."""
  return dtype not in (tf.bool, tf.string)


def _has_gradient(dtype: tf.DType) -> bool:
  return bool(dtype.is_floating or dtype.is_complex)


def _ambient() -> dict[str, Any]:
  """What a layer knows from the layers around it: `training`, compute dtype."""
  state = vars(global_state.GLOBAL_STATE_TRACKER)
  names = ('current_call_ctx', 'autocast_scope')
  return {name: copy.copy(state.get(name)) for name in names}


@contextlib.contextmanager
def _restored(ambient: Mapping[str, Any]) -> Iterator[None]:
  state = vars(global_state.GLOBAL_STATE_TRACKER)
  before = {name: state.get(name) for name in ambient}
  state.update(ambient)
  try:
    yield
  finally:
    state.update(before)


@contextlib.contextmanager
def _losses_taken(parts: Sequence[Any]) -> Iterator[list[Any]]:
  """The losses that layers add in this context, which they forget."""
  counts = [len(part._losses) for part in parts]
  taken: list[Any] = []
  yield taken
  for part, count in zip(parts, counts, strict=True):
    taken.append(part._losses[count:])
    del part._losses[count:]
