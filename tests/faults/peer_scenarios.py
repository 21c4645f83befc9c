"""Scenarios of the forked children with others' ways to save; see peers.py.

Each of them begins with the state of epoch 2 on disk, written after that of
epoch 1, and saves that of epoch 3. All variables tell the epoch, so that
whatever is restored can be told apart.
"""

import os

import keras
import numpy as np
import tensorflow as tf

OLD, NEW = 2, 3


class _Manager:
  """tf.train.CheckpointManager, to a new number or to the same again."""

  def __init__(self, directory, model, again):
    self._epoch = tf.Variable(0, dtype=tf.int64)
    self._again = again
    checkpoint = tf.train.Checkpoint(
      model=model, optimizer=model.optimizer, epoch=self._epoch
    )
    self._manager = tf.train.CheckpointManager(checkpoint, directory, 1)

  def save(self, epoch):
    self._epoch.assign(epoch)
    self._manager.save(checkpoint_number=0 if self._again else epoch)

  def restore(self):
    self._manager.restore_or_initialize()
    return int(self._epoch.numpy())


class _Backup:
  """keras.callbacks.BackupAndRestore, called as `fit` calls it."""

  def __init__(self, directory, model, double):
    self._model = model
    self._callback = keras.callbacks.BackupAndRestore(
      os.path.join(directory, 'backup'), double_checkpoint=double
    )
    self._callback.set_model(model)

  def save(self, epoch):
    self._callback.on_epoch_end(epoch - 1)

  def restore(self):
    self._model._initial_epoch = None
    self._callback.on_train_begin()
    return self._model._initial_epoch or 0


_MAKERS = {
  'tf_new': (_Manager, False),
  'tf_again': (_Manager, True),
  'keras_single': (_Backup, False),
  'keras_double': (_Backup, True),
}


def peer_begin(gate, kind, directory):
  """Makes the image that the sweep begins with."""
  model = _model()
  peer = _make(kind, directory, model)
  for epoch in range(1, OLD + 1):
    _fill(model, epoch)
    peer.save(epoch)


def peer_verify(gate, kind):
  """What a fresh process restores: an epoch, or what is wrong with it."""
  for directory in gate.directories():
    model = _model()
    _fill(model, 0)
    peer = _make(kind, directory, model)
    gate.swept(lambda model=model, peer=peer: _verdict(model, peer.restore()))


def _sweep(kind):
  def scenario(gate):
    model = _model()
    for directory in gate.directories():
      peer = _make(kind, directory, model)
      peer.restore()
      _fill(model, NEW)
      gate.swept(lambda peer=peer: peer.save(NEW))

  return scenario


tf_new = _sweep('tf_new')
tf_again = _sweep('tf_again')
keras_single = _sweep('keras_single')
keras_double = _sweep('keras_double')


def _make(kind, directory, model):
  make, option = _MAKERS[kind]
  return make(directory, model, option)


def _model():
  layers = [keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(3)]
  model = keras.Sequential(layers)
  model.compile(keras.optimizers.Adam(0.01), 'mse')
  model.optimizer.build(model.trainable_variables)
  return model


def _variables(model):
  return [*model.variables, *model.optimizer.variables]


def _fill(model, epoch):
  for variable in _variables(model):
    variable.assign(np.full(variable.shape, epoch, variable.dtype))


def _verdict(model, epoch):
  if epoch not in (OLD, NEW):
    return f'starts at epoch {epoch} without a word'
  found = sorted(
    {float(x) for v in _variables(model) for x in np.ravel(v.numpy())}
  )
  if found != [epoch]:
    return 'values of one epoch said to be of another'
  return epoch
