"""Small models and their data, which Keras's fit and tftrain both train."""

import keras
import numpy as np
import tensorflow as tf

layers = keras.layers
_LENGTH = 6


# Data: rows -> (features, labels).


def features(rows, size=4):
  return np.random.RandomState(0).normal(size=(rows, size)).astype('float32')


def regression(rows):
  x = features(rows)
  return x, x.sum(1, keepdims=True)


def flat_regression(rows):
  """Labels `[batch]`, also beside outputs `[batch, 1]`."""
  x = features(rows)
  return x, x.sum(1)


def counts(rows):
  x = features(rows)
  return x, np.round(np.exp(0.5 * x[:, :1]) + 1).astype('float32')


def vectors(rows):
  x = features(rows)
  return x, np.stack([x[:, 0], x.sum(1), x[:, 1] - x[:, 2]], 1)


def binary(rows):
  x = features(rows)
  return x, (x.sum(1, keepdims=True) > 0).astype('float32')


def signs(rows):
  x, y = binary(rows)
  return x, 2 * y - 1


def flags(rows):
  x, y = vectors(rows)
  return x, (y > 0).astype('float32')


def classes(rows):
  x = features(rows)
  return x, np.digitize(x.sum(1), [-1, 1]).astype('int64')


def one_hot(rows):
  x, y = classes(rows)
  return x, np.eye(3, dtype='float32')[y]


def distributions(rows):
  x, y = vectors(rows)
  powers = np.exp(y)
  return x, powers / powers.sum(1, keepdims=True)


def labels_in_columns(rows):
  x, y = classes(rows)
  return x, y[:, np.newaxis]


def flat_binary(rows):
  """Whole numbers `[batch]`."""
  x, y = binary(rows)
  return x, y[:, 0].astype('int64')


def in_double(rows):
  x, y = regression(rows)
  return x.astype('float64'), y.astype('float64')


def images(rows):
  x = features(rows, 36).reshape(rows, 6, 6, 1)
  return x, np.digitize(x.mean((1, 2, 3)), [-0.1, 0.1]).astype('int64')


def pixels(rows):
  x = features(rows, 36).reshape(rows, 6, 6, 1)
  return x, np.digitize(x[..., 0], [-0.5, 0.5]).astype('int64')


def one_hot_pixels(rows):
  x, y = pixels(rows)
  return x, np.eye(3, dtype='float32')[y]


def pixels_with_holes(rows):
  """Some pixels have the class -1."""
  x, y = pixels(rows)
  return x, np.where(y == 2, -1, y)


def several(rows):
  x = features(rows)
  return x, {
    'priority': binary(rows)[1],
    'dept': classes(rows)[1],
    'score': regression(rows)[1],
  }


def listed(rows):
  x, y = several(rows)
  return x, [y['priority'], y['dept'], y['score']]


def without_dept(rows):
  x, y = several(rows)
  return x, {'priority': y['priority'], 'score': y['score']}


def one_by_name(rows):
  x, y = several(rows)
  return x, {'score': y['score']}


def paired(rows):
  x, y = several(rows)
  return x, (y['score'], y['dept'])


def nested(rows):
  x, y = several(rows)
  head = {'priority': y['priority'], 'dept': y['dept']}
  return x, {'head': head, 'score': y['score']}


def all_binary(rows):
  x = features(rows)
  return x, {'first': binary(rows)[1], 'second': (x[:, :1] > 0) * 1.0}


def tokens(rows, seed=0):
  """Ids of 1 to 6, 0 after the end; rows of 1 to 6 tokens."""
  random = np.random.RandomState(seed)
  ids = random.randint(1, 7, (rows, _LENGTH)).astype('int32')
  for row, size in enumerate(random.randint(1, _LENGTH + 1, rows)):
    ids[row, size:] = 0
  return ids


def tags(rows):
  ids = tokens(rows)
  return ids, (ids % 3).astype('int64')


def evenly_tagged(rows):
  """As many tokens in each 8 rows, but not in each 4 or 2."""
  ids = np.random.RandomState(0).randint(1, 7, (rows, _LENGTH)).astype('int32')
  sizes = np.resize([1, 2, 6, 5, 3, 4, 1, 2], rows)
  ids[np.arange(_LENGTH) >= sizes[:, np.newaxis]] = 0
  return ids, (ids % 3).astype('int64')


def one_hot_tags(rows):
  ids, y = tags(rows)
  return ids, np.eye(3, dtype='float32')[y]


def sequences(rows):
  """Steps of zeros after the end, which Masking leaves out."""
  x = np.random.RandomState(1).normal(size=(rows, _LENGTH, 2)).astype('float32')
  x[tokens(rows) == 0] = 0
  return x, x.sum(-1, keepdims=True)


def sequence_sums(rows):
  x, y = sequences(rows)
  return x, y.sum(1)


def translations(rows):
  """Two inputs and two outputs, of other lengths and so of other masks."""
  source, target = tokens(rows), tokens(rows, 1)
  x = {'source': source, 'target': target}
  words = np.roll(target, -1, 1).astype('int64')
  return x, {'tags': (source % 3).astype('int64'), 'words': words % 7}


def even_translations(rows):
  source, y = evenly_tagged(rows)
  target = source[:, ::-1].copy()
  words = target.astype('int64')
  return {'source': source, 'target': target}, {'tags': y, 'words': words}


def token_scores(rows):
  x, _ = translations(rows)
  scores = {name: np.sin(ids)[..., np.newaxis] for name, ids in x.items()}
  return x, {name: one.astype('float32') for name, one in scores.items()}


def two_inputs(rows):
  x = features(rows, 8)
  return {'a': x[:, :4], 'b': x[:, 4:]}, x.sum(1, keepdims=True)


def listed_inputs(rows):
  x, y = two_inputs(rows)
  return [x['a'], x['b']], y


def token_pairs(rows):
  x, _ = translations(rows)
  x = [x['source'], x['target']]
  return x, (x[0][:, :1] > x[1][:, :1]).astype('float32')


# Weights: rows -> weights.


def row_weights(rows):
  return np.random.RandomState(2).uniform(0.5, 2, rows).astype('float32')


def weights_with_zeros(rows):
  return (np.arange(rows) % 3).astype('float32')


def token_weights(rows):
  shape = rows, _LENGTH
  return np.random.RandomState(2).uniform(0.5, 2, shape).astype('float32')


def whole_weights(rows):
  return np.arange(rows) % 3 + 1


def pixel_weights(rows):
  shape = rows, 6, 6
  return np.random.RandomState(2).uniform(0.5, 2, shape).astype('float32')


def weights_by_output(rows):
  weights = row_weights(rows)
  other = weights_with_zeros(rows)
  return {'priority': weights, 'dept': other, 'score': weights[::-1].copy()}


def listed_weights(rows):
  return list(weights_by_output(rows).values())


def weights_of_translations(rows):
  weights = token_weights(rows)
  return {'tags': weights, 'words': weights[:, ::-1].copy()}


def weights_of_scores(rows):
  weights = weights_of_translations(rows)
  return {'source': weights['tags'], 'target': weights['words']}


# Models: each makes the same weights again.


def dense(units=1, activation=None, **options):
  def make():
    return keras.Sequential(
      [
        keras.Input((4,)),
        layers.Dense(8, 'tanh', **options),
        layers.Dense(units, activation),
      ]
    )

  return make


def scalar_outputs():
  """Outputs `[batch]`."""
  inputs = keras.Input((4,))
  hidden = layers.Dense(8, 'tanh')(inputs)
  return keras.Model(inputs, layers.Reshape(())(layers.Dense(1)(hidden)))


def frozen():
  """The regularizer of a weight that is not trained counts in no loss."""
  model = dense(kernel_regularizer='l2')()
  model.layers[0].trainable = False
  return model


def one_output_by_name():
  inputs = keras.Input((4,))
  hidden = layers.Dense(8, 'tanh')(inputs)
  return keras.Model(inputs, layers.Dense(1, name='score')(hidden))


def dictionary_of_one():
  model = one_output_by_name()
  return keras.Model(model.inputs, {'score': model.output})


def normalized(layer):
  def make():
    return keras.Sequential(
      [
        keras.Input((4,)),
        layers.Dense(8),
        layer(),
        layers.Activation('tanh'),
        layers.Dense(3),
      ]
    )

  return make


class Subclassed(keras.Model):
  """A model with a call of its own, of one output or of a dictionary."""

  def __init__(self, sizes):
    super().__init__()
    self.hidden = layers.Dense(8, 'tanh')
    self.heads = {name: layers.Dense(size) for name, size in sizes.items()}

  def call(self, inputs):
    hidden = self.hidden(inputs)
    found = {name: head(hidden) for name, head in self.heads.items()}
    return found if len(found) > 1 else next(iter(found.values()))


class SubclassedPair(Subclassed):
  """A model that returns a tuple."""

  def call(self, inputs):
    return tuple(super().call(inputs).values())


class SubclassedPenalty(Subclassed):
  """A model that adds to the loss in its own call."""

  def call(self, inputs):
    self.add_loss(0.1 * tf.reduce_mean(tf.abs(self.hidden(inputs))))
    return super().call(inputs)


def subclassed(kind=Subclassed, **sizes):
  def make():
    model = kind(sizes)
    model(np.zeros((1, 4), 'float32'))
    return model

  return make


def convolutional():
  return keras.Sequential(
    [
      keras.Input((6, 6, 1)),
      layers.Conv2D(4, 3, activation='tanh'),
      layers.AveragePooling2D(2),
      layers.Flatten(),
      layers.Dense(3),
    ]
  )


def segmenter(activation=None):
  def make():
    return keras.Sequential(
      [
        keras.Input((6, 6, 1)),
        layers.Conv2D(4, 3, activation='tanh', padding='same'),
        layers.Conv2D(3, 1, activation=activation),
      ]
    )

  return make


def temporal():
  """Convolutions over time, beside no mask."""
  return keras.Sequential(
    [
      keras.Input((_LENGTH, 2)),
      layers.Conv1D(4, 3, padding='causal', activation='tanh'),
      layers.Dense(1),
    ]
  )


def _heads():
  inputs = keras.Input((4,))
  hidden = layers.Dense(8, 'tanh')(inputs)
  return inputs, {
    'priority': layers.Dense(1, name='priority')(hidden),
    'dept': layers.Dense(3, name='dept')(hidden),
    'score': layers.Dense(1, name='score')(hidden),
  }


def several_outputs():
  return keras.Model(*_heads())


def listed_outputs():
  inputs, outputs = _heads()
  return keras.Model(inputs, list(outputs.values()))


def nested_outputs():
  inputs, outputs = _heads()
  score = outputs.pop('score')
  return keras.Model(inputs, {'head': outputs, 'score': score})


def binary_outputs():
  inputs = keras.Input((4,))
  hidden = layers.Dense(8, 'tanh')(inputs)
  names = ('first', 'second')
  outputs = {name: layers.Dense(1, name=name)(hidden) for name in names}
  return keras.Model(inputs, outputs)


def tagger(middle=None, activation=None, mask_zero=True):
  """Recurrent layers take most of the time of a test; few cases have them."""

  def make():
    return keras.Sequential(
      [
        keras.Input((None,), dtype='int32'),
        layers.Embedding(7, 5, mask_zero=mask_zero),
        middle() if middle else layers.Dense(4, 'tanh'),
        layers.Dense(3, activation),
      ]
    )

  return make


def gru():
  return layers.GRU(4, return_sequences=True)


def lstm():
  return layers.LSTM(4, return_sequences=True)


def bidirectional():
  return layers.Bidirectional(layers.GRU(3, return_sequences=True))


def normalized_tagger():
  """Batch statistics of the tokens that are there."""
  return keras.Sequential(
    [
      keras.Input((_LENGTH,), dtype='int32'),
      layers.Embedding(7, 5, mask_zero=True),
      layers.BatchNormalization(),
      layers.Dense(3),
    ]
  )


def masked(return_sequences, head=lambda: layers.Dense(1)):
  def make():
    return keras.Sequential(
      [
        keras.Input((_LENGTH, 2)),
        layers.Masking(),
        layers.LSTM(4, return_sequences=return_sequences),
        head(),
      ]
    )

  return make


def each_step():
  return layers.TimeDistributed(layers.Dense(1))


def attentive():
  """A mask that reaches the loss and the attention."""
  inputs = keras.Input((_LENGTH,), dtype='int32')
  hidden = layers.Embedding(7, 4, mask_zero=True)(inputs)
  attended = layers.MultiHeadAttention(2, 2)(hidden, hidden)
  hidden = layers.LayerNormalization()(layers.Add()([hidden, attended]))
  return keras.Model(inputs, layers.Dense(3)(hidden))


def translator():
  """An encoder and a decoder; each output has a mask of its own."""
  source = keras.Input((_LENGTH,), dtype='int32', name='source')
  target = keras.Input((_LENGTH,), dtype='int32', name='target')
  # Unrolled: a loop and its gradient take longer to trace.
  options = {'return_sequences': True, 'unroll': True}
  encoded, state = layers.GRU(4, return_state=True, **options)(
    layers.Embedding(7, 5, mask_zero=True)(source)
  )
  decoded = layers.GRU(4, **options)(
    layers.Embedding(7, 5, mask_zero=True)(target), initial_state=state
  )
  return keras.Model(
    {'source': source, 'target': target},
    {
      'tags': layers.Dense(3, name='tags')(encoded),
      'words': layers.Dense(7, name='words')(decoded),
    },
  )


def linear_pair():
  """Two tables with masks of their own, and one linear layer of both."""
  names = ('source', 'target')
  inputs = {n: keras.Input((_LENGTH,), dtype='int32', name=n) for n in names}
  linear = layers.Dense(1, name='linear')
  tables = {n: layers.Embedding(7, 3, mask_zero=True) for n in names}
  return keras.Model(inputs, {n: linear(tables[n](inputs[n])) for n in names})


def _pair():
  return [keras.Input((4,), name=name) for name in ('a', 'b')]


def multi_input():
  a, b = _pair()
  joined = layers.Concatenate()([layers.Dense(4, 'tanh')(a), b])
  return keras.Model({'a': a, 'b': b}, layers.Dense(1)(joined))


def listed_multi_input():
  a, b = _pair()
  joined = layers.Concatenate()([layers.Dense(4, 'tanh')(a), b])
  return keras.Model([a, b], layers.Dense(1)(joined))


def shared():
  """One layer called twice."""
  a, b = _pair()
  both = layers.Dense(4, 'tanh')
  return keras.Model(
    {'a': a, 'b': b}, layers.Dense(1)(layers.Subtract()([both(a), both(b)]))
  )


def shared_embedding():
  """One embedding of two inputs, averaged over the tokens that are there."""
  inputs = [keras.Input((_LENGTH,), dtype='int32') for _ in range(2)]
  embedding = layers.Embedding(7, 4, mask_zero=True)
  means = [layers.GlobalAveragePooling1D()(embedding(one)) for one in inputs]
  joined = layers.Concatenate()(means)
  return keras.Model(inputs, layers.Dense(1, 'sigmoid')(joined))


class Penalized(layers.Layer):
  """Adds a scalar to the loss: a mean over the rows."""

  def call(self, inputs):
    self.add_loss(0.1 * tf.reduce_mean(inputs**2))
    return inputs


class PenalizedRows(layers.Layer):
  """Adds a value for each row, which Keras adds up."""

  def call(self, inputs):
    self.add_loss(0.01 * tf.reduce_mean(inputs**2, -1))
    return inputs


class Watched(layers.Layer):
  """Holds a metric of its own."""

  def __init__(self):
    super().__init__()
    self.size = keras.metrics.Mean(name='size')

  def call(self, inputs):
    self.size.update_state(tf.abs(inputs))
    return inputs


def with_layer(layer):
  """The dense model with a layer in the middle."""

  def make():
    parts = [layers.Dense(8, 'tanh'), layer(), layers.Dense(1)]
    return keras.Sequential([keras.Input((4,)), *parts])

  return make


def penalized_everywhere():
  inputs = keras.Input((4,))
  hidden = layers.Dense(
    8, 'tanh', kernel_regularizer='l2', bias_regularizer='l1',
    activity_regularizer=keras.regularizers.L2(0.05),
  )(inputs)  # fmt: skip
  return keras.Model(inputs, layers.Dense(1)(Penalized()(hidden)))


def _penalized_dense(units):
  return layers.Dense(
    units, 'tanh', kernel_regularizer='l2', activity_regularizer='l2'
  )


def penalized_submodel():
  inner = [keras.Input((4,)), _penalized_dense(8), Penalized()]
  inputs = keras.Input((4,))
  outputs = layers.Dense(1)(keras.Sequential(inner)(inputs))
  return keras.Model(inputs, outputs)


def penalized_twice():
  """A layer that is called twice: its weights count once, its outputs twice."""
  a, b = _pair()
  both, penalized = _penalized_dense(4), Penalized()
  gap = layers.Subtract()([penalized(both(a)), penalized(both(b))])
  return keras.Model({'a': a, 'b': b}, layers.Dense(1)(gap))


def penalized_outputs():
  inputs = keras.Input((4,))
  hidden = Penalized()(_penalized_dense(8)(inputs))
  heads = [
    layers.Dense(1, name='first'),
    layers.Dense(1, name='second', kernel_regularizer='l2'),
  ]
  return keras.Model(inputs, {head.name: head(hidden) for head in heads})


def penalized_tagger():
  """Penalties beside a mask."""
  return keras.Sequential(
    [
      keras.Input((_LENGTH,), dtype='int32'),
      layers.Embedding(7, 5, mask_zero=True, embeddings_regularizer='l2'),
      layers.GRU(4, return_sequences=True, kernel_regularizer='l2'),
      layers.Dense(3),
    ]
  )


# Losses and metrics of one's own.


class FourthPower(keras.losses.Loss):
  def call(self, y_true, y_pred):
    return tf.reduce_mean((y_true - y_pred) ** 4, -1)


class TotalError(keras.Metric):
  """The sum of all errors."""

  def __init__(self, name='total_error'):
    super().__init__(name=name)
    self.total = self.add_variable((), 'zeros', name='total')

  def update_state(self, y_true, y_pred, sample_weight=None):
    error = tf.abs(y_true - y_pred)[:, 0]
    if sample_weight is not None:
      error *= tf.cast(sample_weight, tf.float32)
    self.total.assign_add(tf.reduce_sum(error))

  def result(self):
    return self.total


def relative_error(labels, predictions):
  error = tf.abs(labels - predictions) / (1 + tf.abs(labels))
  return tf.reduce_mean(error, -1)


def is_close(labels, predictions):
  near = tf.abs(labels - predictions) < 0.5
  return tf.reduce_mean(tf.cast(near, tf.float32), -1)
