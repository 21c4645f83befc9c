"""SupervisedTask is Keras's fit: the same program, the same weights.

A Case is what both are given. Its final weights and its figures are compared,
on one device and, for many, on replicas with micro-batches and a ragged batch.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
import types
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import keras_programs as programs
import tftrain

layers, losses, optimizers = keras.layers, keras.losses, keras.optimizers
km = keras.metrics
_BATCH = 8
_EVEN, _RAGGED = 48, 44


def momentum():
  """Not Adam: Keras's squares the gradients of a row looked up twice apart."""
  return optimizers.SGD(0.05, momentum=0.9)


def small_steps():
  return optimizers.SGD(0.01)


class Case(NamedTuple):
  """One program, given alike to Keras's fit and to SupervisedTask.

  Attributes:
    make: Returns the model.
    data: Rows -> (features, labels).
    loss: What `compile` takes.
    optimizer: Returns what `compile` takes.
    metrics: Returns what `compile` takes.
    weighted_metrics: Returns what `compile` takes.
    loss_weights: What `compile` takes.
    weights: Rows -> sample weights.
    class_weight: What `fit` takes.
    apart: Figures that differ on purpose; all others are compared.
    apart_if_ragged: Figures that differ if the last batch is not full.
    renamed: Keras's name of a figure -> ours, where they differ.
    spreads: Whether it is trained on replicas too, in micro-batches.
    tolerance: Of the weights, absolute.
    is_slow: Whether only scripts/test --all runs it.
  """

  make: Callable[[], Any]
  data: Callable[[int], Any]
  loss: Any
  optimizer: Callable[[], Any] = momentum
  metrics: Callable[[], Any] = lambda: None
  weighted_metrics: Callable[[], Any] = lambda: None
  loss_weights: Any = None
  weights: Callable[[int], Any] | None = None
  class_weight: Any = None
  apart: tuple[str, ...] = ()
  apart_if_ragged: tuple[str, ...] = ()
  renamed: Mapping[str, str] = types.MappingProxyType({})
  spreads: bool = False
  tolerance: float = 1e-6
  is_slow: bool = True


def sparse(**options):
  return losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def heads():
  return {
    'priority': losses.BinaryCrossentropy(from_logits=True),
    'dept': sparse(),
    'score': 'mse',
  }


def head_metrics():
  auc = km.AUC(from_logits=True, name='auc')
  return {'priority': [auc, 'binary_accuracy'], 'dept': 'accuracy'}


_FACTORS = {'priority': 1.0, 'dept': 0.5, 'score': 0.2}
# Keras averages the loss of masked batches as if each had as many tokens;
# tftrain counts tokens.
_MASKED = ('loss',)
# Keras counts elements of weight 0 in metrics without weights.
_ZEROS = ('accuracy',)
# Keras averages the sums of batches by their rows; tftrain, by batches.
_SUMS = ('loss',)

_REGRESSION = {
  'mse by name': Case(
    programs.dense(), programs.regression, 'mse',
    metrics=lambda: ['mae', programs.is_close], spreads=True, is_slow=False,
  ),
  'mae as a function': Case(
    programs.dense(), programs.regression, losses.mean_absolute_error,
    lambda: optimizers.SGD(0.05), metrics=lambda: [km.mean_squared_error],
  ),
  'own function': Case(
    programs.dense(), programs.regression, programs.relative_error,
    lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    metrics=lambda: [programs.is_close], spreads=True,
  ),
  'MeanSquaredError': Case(
    programs.dense(), programs.regression, losses.MeanSquaredError(),
    lambda: optimizers.Adam(0.01), metrics=lambda: [km.RootMeanSquaredError()],
  ),
  'MeanAbsoluteError': Case(
    programs.dense(), programs.regression, losses.MeanAbsoluteError(),
    lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    metrics=lambda: [km.MeanAbsoluteError(name='mae'), 'mse'], spreads=True,
  ),
  'Huber': Case(
    programs.dense(), programs.regression, losses.Huber(0.5),
    lambda: optimizers.RMSprop(0.01), spreads=True,
    metrics=lambda: [km.R2Score()],
  ),
  'LogCosh': Case(
    programs.dense(), programs.regression, losses.LogCosh(),
    lambda: optimizers.Nadam(0.01), metrics=lambda: [km.LogCoshError()],
  ),
  'CosineSimilarity': Case(
    programs.dense(3), programs.vectors, losses.CosineSimilarity(),
    lambda: optimizers.Adamax(0.01), metrics=lambda: [km.CosineSimilarity()],
  ),
  'msle by name': Case(
    programs.dense(1, 'softplus'), programs.counts, 'msle',
    lambda: optimizers.Adagrad(0.05), metrics=lambda: ['msle', 'mape'],
  ),
  'mape by name': Case(
    programs.dense(1, 'softplus'), programs.counts, 'mape',
    lambda: optimizers.Lion(0.003), metrics=lambda: ['mae'],
  ),
  'Poisson': Case(
    programs.dense(1, 'softplus'), programs.counts, losses.Poisson(),
    lambda: optimizers.Adam(0.01, amsgrad=True), metrics=lambda: [km.Poisson()],
    spreads=True,
  ),
  'labels [batch] beside outputs [batch, 1]': Case(
    programs.dense(), programs.flat_regression, 'mse', metrics=lambda: ['mae'],
    spreads=True,
  ),
  'outputs [batch] beside labels [batch, 1]': Case(
    programs.scalar_outputs, programs.regression, losses.MeanSquaredError(),
    metrics=lambda: [km.MeanAbsoluteError(name='mae')],
  ),
  'several targets': Case(
    programs.dense(3), programs.vectors, 'mse', spreads=True,
    metrics=lambda: [km.R2Score(class_aggregation=None)],
  ),
  'data in double precision': Case(
    programs.dense(), programs.in_double, 'mse', metrics=lambda: ['mae'],
  ),
  'own classes': Case(
    programs.dense(), programs.regression, programs.FourthPower(),
    lambda: optimizers.Adam(0.01), weights=programs.row_weights, spreads=True,
    metrics=lambda: [programs.TotalError()],
    weighted_metrics=lambda: [programs.TotalError('weighted')],
  ),
}  # fmt: skip

_CLASSES = {
  'BinaryCrossentropy of logits': Case(
    programs.dense(), programs.binary, losses.BinaryCrossentropy(True),
    lambda: optimizers.Adam(0.01), spreads=True,
    metrics=lambda: [km.AUC(from_logits=True, name='auc')],
  ),
  'BinaryCrossentropy with label smoothing': Case(
    programs.dense(1, 'sigmoid'), programs.binary,
    losses.BinaryCrossentropy(label_smoothing=0.2),
    lambda: optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    metrics=lambda: ['accuracy', km.Precision(name='p'), km.Recall(name='r')],
  ),
  'binary_crossentropy by name': Case(
    programs.dense(1, 'sigmoid'), programs.binary, 'binary_crossentropy',
    lambda: 'adam', metrics=lambda: ['acc', km.AUC(name='auc')],
  ),
  'crossentropy of one output': Case(
    programs.dense(1, 'sigmoid'), programs.binary, 'crossentropy',
    metrics=lambda: ['accuracy'],
  ),
  'crossentropy of one-hot labels': Case(
    programs.dense(3, 'softmax'), programs.one_hot, 'crossentropy',
    metrics=lambda: ['accuracy'],
  ),
  'crossentropy of classes': Case(
    programs.dense(3, 'softmax'), programs.classes, 'crossentropy',
    metrics=lambda: ['accuracy'],
  ),
  'Hinge': Case(
    programs.dense(), programs.signs, losses.Hinge(),
    metrics=lambda: [km.Hinge()], spreads=True,
  ),
  'squared_hinge by name': Case(
    programs.dense(), programs.signs, 'squared_hinge', lambda: 'sgd',
  ),
  'CategoricalHinge': Case(
    programs.dense(3), programs.one_hot, losses.CategoricalHinge(),
    metrics=lambda: [km.CategoricalHinge()],
  ),
  'BinaryFocalCrossentropy': Case(
    programs.dense(1, 'sigmoid'), programs.binary,
    losses.BinaryFocalCrossentropy(apply_class_balancing=True),
    lambda: optimizers.Adadelta(1.0),
  ),
  'CategoricalFocalCrossentropy': Case(
    programs.dense(3, 'softmax'), programs.one_hot,
    losses.CategoricalFocalCrossentropy(), lambda: optimizers.Ftrl(0.05),
  ),
  'flags with a vector of F1': Case(
    programs.dense(3, 'sigmoid'), programs.flags, 'binary_crossentropy',
    metrics=lambda: [km.F1Score(threshold=0.5, name='f1')], spreads=True,
  ),
  'sparse crossentropy of logits': Case(
    programs.dense(3), programs.classes, sparse(),
    lambda: optimizers.Adam(0.01), metrics=lambda: ['accuracy'], spreads=True,
  ),
  'sparse crossentropy by name': Case(
    programs.dense(3, 'softmax'), programs.classes,
    'sparse_categorical_crossentropy', lambda: optimizers.Lamb(0.01),
    metrics=lambda: [km.SparseTopKCategoricalAccuracy(2)],
  ),
  'CategoricalCrossentropy with label smoothing': Case(
    programs.dense(3), programs.one_hot,
    losses.CategoricalCrossentropy(True, label_smoothing=0.1),
    lambda: optimizers.Adafactor(0.01), spreads=True,
    metrics=lambda: ['accuracy', km.TopKCategoricalAccuracy(2)],
  ),
  'KLDivergence': Case(
    programs.dense(3, 'softmax'), programs.distributions, losses.KLDivergence(),
    lambda: optimizers.Adamax(0.01), metrics=lambda: [km.KLDivergence()],
  ),
  'an ignored class': Case(
    programs.dense(3), programs.classes, sparse(ignore_class=1),
    spreads=True, apart=('loss',),  # as with masks
  ),
  'class_weight of classes': Case(
    programs.dense(3), programs.classes, sparse(), class_weight={0: 0.5, 2: 3},
    weighted_metrics=lambda: ['accuracy'], spreads=True, is_slow=False,
  ),
  'class_weight of one-hot labels': Case(
    programs.dense(3, 'softmax'), programs.one_hot, 'categorical_crossentropy',
    class_weight={0: 0.5, 1: 1.0, 2: 3.0},
    weighted_metrics=lambda: ['accuracy'],
  ),
  'class_weight of binary labels': Case(
    programs.dense(1, 'sigmoid'), programs.binary, 'binary_crossentropy',
    class_weight={0: 0.5, 1: 2.0},
  ),
  'class_weight of labels [batch]': Case(
    programs.dense(1, 'sigmoid'), programs.flat_binary, 'binary_crossentropy',
    class_weight={0: 0.5, 1: 2.0}, metrics=lambda: ['accuracy'],
  ),
  'labels [batch, 1] of classes': Case(
    programs.dense(3), programs.labels_in_columns, sparse(), spreads=True,
    metrics=lambda: ['accuracy'],
  ),
  'whole labels [batch] beside [batch, 1]': Case(
    programs.dense(1, 'sigmoid'), programs.flat_binary, 'binary_crossentropy',
    metrics=lambda: ['accuracy', km.AUC(name='auc')], spreads=True,
  ),
  'generalized crossentropy': Case(
    programs.dense(3, 'softmax'), programs.classes,
    losses.CategoricalGeneralizedCrossEntropy(),
  ),
  'AUC by label': Case(
    programs.dense(3, 'sigmoid'), programs.flags, 'binary_crossentropy',
    weights=programs.row_weights,
    metrics=lambda: [
      km.AUC(multi_label=True, name='auc'),
      km.F1Score(average='macro', threshold=0.5, name='f1'),
    ],
    weighted_metrics=lambda: [km.AUC(name='weighted')],
  ),
  'Dice of each image': Case(
    programs.segmenter('softmax'), programs.one_hot_pixels,
    losses.Dice(axis=(1, 2, 3)), spreads=True,
  ),
  # A scalar of the whole batch is no mean over rows: on one device only.
  'Dice of the batch': Case(
    programs.segmenter('softmax'), programs.one_hot_pixels, losses.Dice(),
  ),
  'Tversky': Case(
    programs.segmenter('softmax'), programs.one_hot_pixels,
    losses.Tversky(axis=(1, 2, 3)),
  ),
}  # fmt: skip

_WEIGHTS = {
  'weights of rows': Case(
    programs.dense(), programs.regression, 'mse', weights=programs.row_weights,
    metrics=lambda: ['mae'], weighted_metrics=lambda: ['mae', 'mse'],
    spreads=True, is_slow=False,
  ),
  'weights of 0': Case(
    programs.dense(), programs.binary, losses.BinaryCrossentropy(True),
    weights=programs.weights_with_zeros, spreads=True,
    metrics=lambda: ['accuracy'], apart=_ZEROS,
    weighted_metrics=lambda: [km.AUC(from_logits=True, name='auc'), 'accuracy'],
  ),
  'weights [batch, 1]': Case(
    programs.dense(), programs.regression, losses.MeanAbsoluteError(),
    weights=lambda rows: programs.row_weights(rows)[:, np.newaxis],
    weighted_metrics=lambda: ['mse'],
  ),
  'mean_with_sample_weight': Case(
    programs.dense(), programs.regression,
    losses.MeanSquaredError('mean_with_sample_weight'),
    weights=programs.weights_with_zeros, weighted_metrics=lambda: ['mae'],
    spreads=True, apart=('loss',),  # Keras: each batch counts alike
  ),
  'mean': Case(
    programs.dense(), programs.regression, losses.MeanSquaredError('mean'),
    weights=programs.weights_with_zeros,
  ),
  'sum': Case(
    programs.dense(), programs.regression, losses.MeanSquaredError('sum'),
    small_steps, metrics=lambda: ['mae'], spreads=True,
    apart_if_ragged=_SUMS,
  ),
  'sum with weights': Case(
    programs.dense(3), programs.classes, sparse(reduction='sum'),
    lambda: optimizers.SGD(0.01, momentum=0.9), weights=programs.row_weights,
    weighted_metrics=lambda: ['accuracy'],
  ),
  'none': Case(
    programs.dense(), programs.regression, losses.MeanSquaredError('none'),
    small_steps, metrics=lambda: ['mae'], spreads=True,
  ),
  'none with weights': Case(
    programs.dense(), programs.regression, losses.Huber(reduction=None),
    small_steps, weights=programs.weights_with_zeros,
  ),
  'whole numbers as weights': Case(
    programs.dense(), programs.regression, 'mse', spreads=True,
    weights=programs.whole_weights, weighted_metrics=lambda: ['mae'],
  ),
  'weights of pixels': Case(
    programs.segmenter(), programs.pixels, sparse(), spreads=True,
    weights=programs.pixel_weights, weighted_metrics=lambda: ['accuracy'],
  ),
}  # fmt: skip

_OUTPUTS = {
  'a dictionary of outputs': Case(
    programs.several_outputs, programs.several, heads(),
    loss_weights=_FACTORS, metrics=head_metrics, spreads=True, is_slow=False,
  ),
  'a list of outputs': Case(
    programs.listed_outputs, programs.listed, list(heads().values()),
    lambda: optimizers.Adam(0.01), loss_weights=list(_FACTORS.values()),
    metrics=lambda: [['binary_accuracy'], ['accuracy'], ['mae', 'mse']],
  ),
  'a list of outputs by name': Case(
    programs.listed_outputs, programs.listed, heads(), loss_weights=_FACTORS,
    metrics=head_metrics,
  ),
  'a list of outputs, labels by name': Case(
    programs.listed_outputs, programs.several, heads(), spreads=True,
  ),
  'nested outputs': Case(
    programs.nested_outputs, programs.nested,
    {
      'head': {name: heads()[name] for name in ('priority', 'dept')},
      'score': 'mae',
    },
    metrics=lambda: {
      'head': {'priority': None, 'dept': ['accuracy']},
      'score': ['mse'],
    },
    # Keras names the losses by the path, and the metrics by its last key.
    renamed={'dept_accuracy': 'head/dept_accuracy'}, spreads=True,
  ),
  'one loss for several outputs': Case(
    programs.binary_outputs, programs.all_binary,
    losses.BinaryCrossentropy(True), lambda: optimizers.Nadam(0.01),
  ),
  'weights by output': Case(
    programs.several_outputs, programs.several, heads(),
    weights=programs.weights_by_output, loss_weights=_FACTORS, spreads=True,
    weighted_metrics=head_metrics,
  ),
  'a list of weights': Case(
    programs.listed_outputs, programs.listed, list(heads().values()),
    weights=programs.listed_weights,
    weighted_metrics=lambda: [['binary_accuracy'], ['accuracy'], ['mae']],
  ),
  'one array of weights for all outputs': Case(
    programs.several_outputs, programs.several, heads(),
    weights=programs.row_weights, metrics=head_metrics,
    weighted_metrics=head_metrics, spreads=True,
  ),
  'a reduction for each output': Case(
    programs.several_outputs, programs.several,
    {
      'priority': losses.BinaryCrossentropy(
        True, reduction='mean_with_sample_weight'
      ),
      'dept': sparse(reduction='sum'),
      'score': losses.MeanSquaredError(),
    },
    small_steps, weights=programs.weights_by_output,
    apart=('loss', 'priority_loss'), spreads=True,
  ),
  'none for each of several outputs': Case(
    programs.several_outputs, programs.several,
    {
      'priority': losses.BinaryCrossentropy(True, reduction='none'),
      'dept': sparse(reduction='none'),
      'score': losses.MeanSquaredError('none'),
    },
    small_steps, spreads=True,
  ),
  'labels of some outputs': Case(
    programs.several_outputs, programs.without_dept,
    {'priority': heads()['priority'], 'score': 'mse'},
  ),
  'an output without loss': Case(
    programs.listed_outputs, programs.listed,
    [heads()['priority'], None, 'mse'],
  ),
  'tuples': Case(
    programs.listed_outputs, programs.listed, tuple(heads().values()),
    loss_weights=(1.0, 0.5, 0.2),
  ),
  'metrics for every output': Case(
    programs.binary_outputs, programs.all_binary, 'mse',
    metrics=lambda: ['mae', km.RootMeanSquaredError(name='rmse')],
  ),
  'a list of outputs, metrics by name': Case(
    programs.listed_outputs, programs.listed, list(heads().values()),
    metrics=lambda: {'dept': 'accuracy'},
    weighted_metrics=lambda: {'score': ['mse']},
  ),
  'one output by name': Case(
    programs.one_output_by_name, programs.regression, {'score': 'mse'},
    metrics=lambda: {'score': ['mae']},
  ),
  'one output in a list': Case(
    programs.dense(), programs.regression, ['mse'], metrics=lambda: ['mae'],
  ),
  'metrics of one output in a list': Case(
    programs.dense(), programs.regression, 'mse', metrics=lambda: [['mae']],
  ),
  'a dictionary of one output': Case(
    programs.dictionary_of_one, programs.one_by_name, {'score': 'mse'},
    metrics=lambda: {'score': ['mae']},
  ),
  'a dictionary of one output, one loss': Case(
    programs.dictionary_of_one, programs.one_by_name, 'mse',
    metrics=lambda: ['mae'],
  ),
}  # fmt: skip

_MASKS = {
  'a mask': Case(
    programs.tagger(), programs.tags, sparse(), apart=_MASKED, spreads=True,
    metrics=lambda: [
      km.SparseCategoricalAccuracy(name='object'),
      km.sparse_categorical_accuracy,
    ],
    is_slow=False,
  ),
  'a mask that a recurrent layer passes on': Case(
    programs.tagger(programs.gru), programs.tags, sparse(), apart=_MASKED,
    metrics=lambda: ['accuracy'], spreads=True,
  ),
  'a mask and weights of tokens': Case(
    programs.tagger(), programs.tags, sparse(), apart=_MASKED, spreads=True,
    weights=programs.token_weights, metrics=lambda: ['accuracy'],
    weighted_metrics=lambda: ['accuracy'],
  ),
  'a mask and mean_with_sample_weight': Case(
    programs.tagger(programs.lstm), programs.tags,
    sparse(reduction='mean_with_sample_weight'), apart=_MASKED,
    weights=programs.token_weights, spreads=True,
  ),
  'a mask and an ignored class': Case(
    programs.tagger(), programs.tags, sparse(ignore_class=1), apart=_MASKED,
    spreads=True,
  ),
  'a mask and sum': Case(
    programs.tagger(), programs.tags, sparse(reduction='sum'),
    small_steps, spreads=True, apart_if_ragged=_SUMS,
  ),
  'a mask and none': Case(
    programs.tagger(), programs.tags, sparse(reduction='none'),
    small_steps, apart=_MASKED,
  ),
  'weights of tokens as a mask': Case(
    programs.tagger(mask_zero=False), programs.tags,
    sparse(reduction='mean_with_sample_weight'),
    weights=lambda rows: (programs.tokens(rows) != 0).astype('float32'),
    weighted_metrics=lambda: ['accuracy'], apart=_MASKED, spreads=True,
  ),
  'a mask and label smoothing': Case(
    programs.tagger(programs.bidirectional, 'softmax'), programs.one_hot_tags,
    losses.CategoricalCrossentropy(label_smoothing=0.1), apart=_MASKED,
    metrics=lambda: ['accuracy'],
  ),
  'Masking of steps': Case(
    programs.masked(True), programs.sequences, 'mse', apart=_MASKED,
    optimizer=lambda: optimizers.Adam(0.01), metrics=lambda: ['mae'],
    spreads=True,
  ),
  'Masking that ends before the loss': Case(
    programs.masked(False), programs.sequence_sums, 'mae',
    lambda: optimizers.RMSprop(0.01), metrics=lambda: ['mse'], spreads=True,
  ),
  'attention': Case(
    programs.attentive, programs.tags, sparse(), apart=_MASKED,
    metrics=lambda: ['accuracy'], spreads=True,
  ),
  'two masks': Case(
    programs.translator, programs.translations,
    {'tags': sparse(), 'words': sparse()}, spreads=True,
    loss_weights={'tags': 0.5, 'words': 2.0},
    metrics=lambda: {'tags': 'accuracy', 'words': 'accuracy'},
    apart=('loss', 'tags_loss', 'words_loss'),
  ),
  'two masks and weights': Case(
    programs.translator, programs.translations,
    {'tags': sparse(), 'words': sparse(reduction='mean_with_sample_weight')},
    weights=programs.weights_of_translations,
    weighted_metrics=lambda: {'tags': 'accuracy', 'words': 'accuracy'},
    apart=('loss', 'tags_loss', 'words_loss'), spreads=True,
  ),
  'a mask of as many tokens in each batch': Case(
    programs.tagger(), programs.evenly_tagged, sparse(),
    weights=programs.token_weights, metrics=lambda: ['accuracy'],
    weighted_metrics=lambda: ['accuracy'],
  ),
  'two masks of as many tokens in each batch': Case(
    programs.translator, programs.even_translations,
    {'tags': sparse(), 'words': sparse()},
    loss_weights={'tags': 0.5, 'words': 2.0},
    metrics=lambda: {'tags': 'accuracy', 'words': 'accuracy'},
  ),
  'a mask, none and weights': Case(
    programs.tagger(), programs.tags, sparse(reduction='none'), small_steps,
    weights=programs.token_weights, apart=_MASKED, spreads=True,
    weighted_metrics=lambda: [
      km.SparseTopKCategoricalAccuracy(2, name='object'),
      km.sparse_categorical_accuracy,
    ],
  ),
  'an ignored class of pixels': Case(
    programs.segmenter(), programs.pixels_with_holes, sparse(ignore_class=-1),
    apart=_MASKED, spreads=True,
  ),
  'batch normalization beside a mask': Case(
    programs.normalized_tagger, programs.tags, sparse(), apart=_MASKED,
  ),
  'a head for each step': Case(
    programs.masked(True, programs.each_step), programs.sequences,
    losses.MeanSquaredError('mean'), apart=_MASKED, metrics=lambda: ['mae'],
  ),
}  # fmt: skip

_MODELS = {
  'a subclass': Case(
    programs.subclassed(only=1), programs.regression, 'mse',
    lambda: optimizers.Adam(0.01), metrics=lambda: ['mae'], spreads=True,
  ),
  'a subclass of several outputs': Case(
    programs.subclassed(priority=1, dept=3, score=1), programs.several,
    heads(), loss_weights=_FACTORS, metrics=head_metrics,
  ),
  'a subclass that returns a tuple': Case(
    programs.subclassed(programs.SubclassedPair, score=1, dept=3),
    programs.paired, ['mse', sparse()],
    metrics=lambda: [['mae'], ['accuracy']],
    # Keras knows no names of these outputs, and takes those of the losses.
    renamed={
      'mse_loss': '0_loss',
      'sparse_categorical_crossentropy_loss': '1_loss',
      'mae': '0_mae',
      'accuracy': '1_accuracy',
    },
  ),
  # On replicas, each has the statistics of its own rows.
  'batch normalization': Case(
    programs.normalized(layers.BatchNormalization), programs.classes, sparse(),
    metrics=lambda: ['accuracy'],
  ),
  'layer normalization': Case(
    programs.normalized(layers.LayerNormalization), programs.classes, sparse(),
    lambda: optimizers.AdamW(0.01), metrics=lambda: ['accuracy'], spreads=True,
  ),
  'convolutions': Case(
    programs.convolutional, programs.images, sparse(),
    lambda: optimizers.Adam(0.01), metrics=lambda: ['accuracy'], spreads=True,
  ),
  'a class for each pixel': Case(
    programs.segmenter(), programs.pixels, sparse(), spreads=True,
    metrics=lambda: [km.MeanIoU(3, sparse_y_pred=False, name='iou')],
  ),
  'convolutions over time': Case(
    programs.temporal, programs.sequences, 'mse', metrics=lambda: ['mae'],
  ),
  'two inputs': Case(
    programs.multi_input, programs.two_inputs, 'mse', metrics=lambda: ['mae'],
    spreads=True, optimizer=lambda: optimizers.Adagrad(0.05),
  ),
  'a list of inputs': Case(
    programs.listed_multi_input, programs.listed_inputs, losses.Huber(),
  ),
  'a layer called twice': Case(
    programs.shared, programs.two_inputs, 'mse', spreads=True,
    metrics=lambda: ['mae'],
  ),
  'an embedding called twice': Case(
    programs.shared_embedding, programs.token_pairs, 'binary_crossentropy',
    metrics=lambda: ['accuracy'], spreads=True,
  ),
  'add_loss': Case(
    programs.with_layer(programs.Penalized), programs.regression, 'mse',
    metrics=lambda: ['mae'], spreads=True, is_slow=False,
  ),
  'an activity regularizer': Case(
    programs.dense(activity_regularizer='l2'), programs.regression, 'mse',
    spreads=True,
  ),
  'kernel regularizers': Case(
    programs.dense(kernel_regularizer='l2', bias_regularizer='l1'),
    programs.regression, 'mse', weights=programs.row_weights, spreads=True,
  ),
  'all that layers add': Case(
    programs.penalized_everywhere, programs.regression, 'mse',
    lambda: optimizers.Adam(0.01), weights=programs.row_weights, spreads=True,
  ),
  'all that layers add, and sum': Case(
    programs.penalized_everywhere, programs.regression,
    losses.MeanSquaredError('sum'), small_steps, spreads=True,
    apart_if_ragged=_SUMS,
  ),
  'a value added for each row': Case(
    programs.with_layer(programs.PenalizedRows), programs.regression, 'mse',
    spreads=True, apart_if_ragged=_SUMS,
  ),
  'add_loss of a model': Case(
    programs.subclassed(programs.SubclassedPenalty, only=1),
    programs.regression, 'mse',
  ),
  'penalties of a model in a model': Case(
    programs.penalized_submodel, programs.regression, 'mse', spreads=True,
  ),
  'penalties of a layer called twice': Case(
    programs.penalized_twice, programs.two_inputs, 'mse', spreads=True,
  ),
  'penalties beside several outputs': Case(
    programs.penalized_outputs, programs.all_binary,
    {'first': 'mse', 'second': 'mae'}, spreads=True,
    loss_weights={'first': 0.5, 'second': 2.0},
  ),
  'regularizers beside a mask': Case(
    programs.penalized_tagger, programs.tags, sparse(), apart=_MASKED,
    spreads=True,
  ),
  'a metric that a layer holds': Case(
    programs.with_layer(programs.Watched), programs.regression, 'mse',
    metrics=lambda: ['mae'], spreads=True,
  ),
  'frozen layers': Case(
    programs.frozen, programs.regression, 'mse', lambda: optimizers.Adam(0.01),
  ),
  'constraints': Case(
    programs.dense(kernel_constraint=keras.constraints.MaxNorm(1.0)),
    programs.regression, 'mse', spreads=True,
  ),
}  # fmt: skip


def _with_optimizer(make, **options):
  return Case(programs.dense(3), programs.classes, sparse(), make, **options)


_SCHEDULES = optimizers.schedules
_OPTIMIZERS = {
  'SGD with weight decay': _with_optimizer(
    lambda: optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1), spreads=True
  ),
  'AdamW': _with_optimizer(lambda: optimizers.AdamW(0.01, weight_decay=0.5)),
  'Lion with weight decay': _with_optimizer(
    lambda: optimizers.Lion(0.003, weight_decay=0.1), spreads=True
  ),
  'Lamb': _with_optimizer(lambda: optimizers.Lamb(0.01), spreads=True),
  'Adafactor': _with_optimizer(lambda: optimizers.Adafactor(0.05)),
  'Nadam': _with_optimizer(lambda: optimizers.Nadam(0.01), spreads=True),
  'Adagrad': _with_optimizer(lambda: optimizers.Adagrad(0.1), spreads=True),
  'Muon': _with_optimizer(lambda: optimizers.Muon(0.01)),
  'ScheduleFreeAdamW': _with_optimizer(
    lambda: optimizers.ScheduleFreeAdamW(0.01)
  ),
  'Adadelta': _with_optimizer(lambda: optimizers.Adadelta(1.0)),
  'Ftrl': _with_optimizer(lambda: optimizers.Ftrl(0.1)),
  'an exponential decay': _with_optimizer(
    lambda: optimizers.SGD(_SCHEDULES.ExponentialDecay(0.1, 2, 0.5)),
    spreads=True,
  ),
  'a cosine decay': _with_optimizer(
    lambda: optimizers.Adam(_SCHEDULES.CosineDecay(0.01, 6, warmup_steps=2)),
    is_slow=False,
  ),
  'piecewise rates': _with_optimizer(
    lambda: optimizers.SGD(
      _SCHEDULES.PiecewiseConstantDecay([2, 4], [0.1, 0.05, 0.01])
    )
  ),
}

CASES = {
  **_REGRESSION,
  **_CLASSES,
  **_WEIGHTS,
  **_OUTPUTS,
  **_MASKS,
  **_MODELS,
  **_OPTIMIZERS,
}
_WAYS = {
  'two replicas': ('mirrored', 1),
  'accumulate': ('one_device', 2),
  'two replicas and accumulate': ('mirrored', 2),
}


def model_of(case):
  keras.utils.set_random_seed(1)
  return case.make()


def compiled(case):
  model = model_of(case)
  model.compile(
    case.optimizer(),
    case.loss,
    case.loss_weights,
    case.metrics(),
    case.weighted_metrics(),
    jit_compile=False,
  )
  return model


@functools.cache
def fitted(name, rows):
  """Returns the weights and the figures after Keras's fit, on one device."""
  case = CASES[name]
  model = compiled(case)
  # Or fit builds it, and loses the first values of ScheduleFreeAdamW.
  model.optimizer.build(model.trainable_variables)
  x, y = case.data(rows)
  history = model.fit(
    x, y, _BATCH, 1, shuffle=False, verbose=0,
    sample_weight=case.weights(rows) if case.weights else None,
    class_weight=case.class_weight,
  ).history  # fmt: skip
  return model.get_weights(), by_entry(history)


def by_entry(history):
  """Returns the figures of the one epoch; a vector is `name/0`, `name/1`..."""
  found = {}
  for name, (value,) in history.items():
    if np.ndim(value):
      found |= {f'{name}/{i}': float(v) for i, v in enumerate(value)}
    else:
      found[name] = float(value)
  return found


def task_of(case):
  return tftrain.SupervisedTask(
    model_of(case),
    case.loss,
    case.optimizer(),
    case.metrics(),
    loss_weights=case.loss_weights,
    weighted_metrics=case.weighted_metrics(),
    class_weight=case.class_weight,
  )


def trained(case, rows, make=task_of, strategy='one_device', accumulate=1):
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = make(case)
  data = case.data(rows)
  if case.weights:
    data = (*data, case.weights(rows))
  trainer = tftrain.Trainer(
    task,
    tftrain.Arrays(data, _BATCH, training=False),
    strategy=strategy,
    log_every=-(-rows // _BATCH),
    update=tftrain.Update(accumulate=accumulate),
  )
  return task, trainer.train(-(-rows // _BATCH)).scalars


def assert_conforms(name, rows, task, scalars):
  case = CASES[name]
  weights, history = fitted(name, rows)
  found = task.model.get_weights()
  for one, other in zip(found, weights, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=case.tolerance)
  apart = case.apart + (case.apart_if_ragged if rows % _BATCH else ())
  for figure, expected in history.items():
    # Beside a ragged batch, Keras averages the parts by batches, not by rows.
    if figure in apart or rows % _BATCH and figure.endswith('_loss'):
      continue
    ours = case.renamed.get(figure, figure)
    assert ours in scalars, sorted(scalars)
    np.testing.assert_allclose(
      scalars[ours], expected, rtol=1e-5, atol=1e-6, err_msg=figure
    )


def _parameters(names):
  return [
    pytest.param(name, marks=[pytest.mark.slow] if CASES[name].is_slow else [])
    for name in names
  ]


@pytest.mark.parametrize('name', _parameters(CASES))
def test_weights_and_figures_are_those_of_fit(name):
  task, scalars = trained(CASES[name], _EVEN)
  assert_conforms(name, _EVEN, task, scalars)


def _spread():
  for name, case in CASES.items():
    if case.spreads:
      yield name, 'two replicas and accumulate'
      if not case.is_slow:
        yield name, 'two replicas'
        yield name, 'accumulate'


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'way'), list(_spread()))
def test_replicas_and_micro_batches_change_nothing(name, way):
  """The last batch has 4 rows: on two replicas, micro-batches of one row."""
  strategy, accumulate = _WAYS[way]
  task, scalars = trained(
    CASES[name], _RAGGED, strategy=strategy, accumulate=accumulate
  )
  assert_conforms(name, _RAGGED, task, scalars)


@pytest.mark.slow
@pytest.mark.parametrize(
  'name',
  [
    'binary_crossentropy by name',
    'class_weight of classes',
    'weights of rows',
    'a dictionary of outputs',
    'a list of outputs by name',
    'nested outputs',
    'two masks',
    'a subclass of several outputs',
    'all that layers add',
    'a metric that a layer holds',
  ],
)
def test_a_compiled_model_is_the_same_program(name):
  def make(case):
    return tftrain.SupervisedTask.from_compiled(
      compiled(case), class_weight=case.class_weight
    )

  task, scalars = trained(CASES[name], _EVEN, make)
  assert_conforms(name, _EVEN, task, scalars)


@pytest.mark.slow
def test_every_metric_leaves_masked_elements_out():
  """Keras's RootMeanSquaredError counts them; its MeanSquaredError does not."""
  case = CASES['Masking of steps']._replace(
    metrics=lambda: [km.MeanSquaredError(), km.RootMeanSquaredError()]
  )
  _, scalars = trained(case, _RAGGED)
  np.testing.assert_allclose(
    scalars['root_mean_squared_error'] ** 2,
    scalars['mean_squared_error'],
    rtol=1e-6,
  )


# Two masks, from first principles.

_PAIR = Case(
  programs.linear_pair,
  programs.token_scores,
  {
    'source': 'mse',
    'target': losses.MeanSquaredError('mean_with_sample_weight'),
  },
  loss_weights={'source': 0.5, 'target': 2.0},
  weights=programs.weights_of_scores,
)


def batches(*arrays):
  return tf.data.Dataset.from_tensor_slices(arrays).batch(_BATCH)


def descended(case):
  """Gradient descent on both masked errors, in float64; closed gradients.

  Returns:
    The tables, kernel and bias, and the figures of the epoch.
  """
  x, y = case.data(_RAGGED)
  model = model_of(case)
  names = 'source', 'target', 'kernel', 'bias'
  given = map(np.float64, model.get_weights())
  values = dict(zip(names, given, strict=True))
  speeds = dict.fromkeys(values, 0.0)
  sums = {name: np.zeros(2) for name in x}
  data = batches(x, y, case.weights(_RAGGED)).as_numpy_iterator()
  for ids, labels, weights in data:
    slopes = {name: np.zeros_like(value) for name, value in values.items()}
    for name, factor in case.loss_weights.items():
      hidden = values[name][ids[name]]  # [batch, time, 3]
      error = hidden @ values['kernel'] + values['bias'] - labels[name]
      present = ids[name] != 0
      weight = np.float64(weights[name]) * present
      count = (present if name == 'source' else weight).sum()
      sums[name] += (weight * error[..., 0] ** 2).sum(), count
      slope = factor * 2 * error * weight[..., np.newaxis] / count
      slopes['kernel'] += np.einsum('bth,bto->ho', hidden, slope)
      slopes['bias'] += slope.sum((0, 1))
      np.add.at(slopes[name], ids[name], slope * values['kernel'][:, 0])
    for name, slope in slopes.items():
      speeds[name] = 0.9 * speeds[name] - 0.05 * slope
      values[name] = values[name] + speeds[name]
  figures = {f'{name}_loss': total / n for name, (total, n) in sums.items()}
  figures['loss'] = sum(
    factor * figures[f'{name}_loss']
    for name, factor in case.loss_weights.items()
  )
  return list(values.values()), figures


@pytest.mark.parametrize(
  'way',
  [
    pytest.param('two replicas', marks=pytest.mark.slow),
    pytest.param('accumulate', marks=pytest.mark.slow),
    'two replicas and accumulate',
  ],
)
def test_two_masks_weights_and_a_ragged_batch_in_closed_form(way):
  strategy, accumulate = _WAYS[way]
  task, scalars = trained(
    _PAIR, _RAGGED, strategy=strategy, accumulate=accumulate
  )
  expected, figures = descended(_PAIR)
  for one, other in zip(task.model.get_weights(), expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
  for figure, value in figures.items():
    np.testing.assert_allclose(scalars[figure], value, rtol=1e-6)


def taped(case):
  """Gradient descent on the full batches, with a plain GradientTape."""
  x, y = case.data(_RAGGED)
  model = model_of(case)
  speeds = [0.0] * len(model.trainable_variables)
  sources = {'tags': 'source', 'words': 'target'}
  for features, labels in batches(x, y):
    with tf.GradientTape() as tape:
      outputs, total = model(features, training=True), 0.0
      for name, factor in case.loss_weights.items():
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(
          labels[name], outputs[name]
        )
        total += factor * tf.reduce_mean(values[features[sources[name]] != 0])
    slopes = tape.gradient(total, model.trainable_variables)
    for place, variable in enumerate(model.trainable_variables):
      slope = tf.convert_to_tensor(slopes[place])
      speeds[place] = 0.9 * speeds[place] - 0.05 * slope
      variable.assign_add(speeds[place])
  return model.get_weights()


@pytest.mark.slow
def test_two_masks_of_a_translator_equal_a_plain_tape():
  case = CASES['two masks']
  task, _ = trained(case, _RAGGED, strategy='mirrored', accumulate=2)
  for one, other in zip(task.model.get_weights(), taped(case), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
