"""One forward pass for several optimizers and losses: `minimize(pairs=...)`.

The oracle is a persistent tape with plain Keras optimizers, on one device with
the whole batch: all gradients first, then all updates.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import error_lines
from tests.support import small_tasks
import tftrain
from tftrain import errors

_WAYS = {
  'plain': ('one_device', {}),
  'two replicas': ('mirrored', {}),
  'accumulate': ('one_device', {'accumulate': 2}),
  'two replicas, accumulate': ('mirrored', {'accumulate': 2}),
  'loss scale': ('one_device', {'loss_scale': 64.0}),
  'two replicas, loss scale': ('mirrored', {'loss_scale': 64.0}),
  'xla': ('one_device', {'jit': 'step'}),
  'xla, accumulate': ('one_device', {'jit': 'step', 'accumulate': 2}),
  'two replicas, xla': ('mirrored', {'jit': 'step'}),
}


def ways(*quick, without=()):
  """Ways to take a step; those that are not named as quick are slow."""
  chosen = {name: way for name, way in _WAYS.items() if name not in without}
  return pytest.mark.parametrize(
    ('strategy', 'options'),
    [
      pytest.param(*way, marks=[] if name in quick else pytest.mark.slow)
      for name, way in chosen.items()
    ],
    ids=chosen.keys(),
  )


def batches(sizes=(8, 8, 5)):
  """Rows `[batch, 4]` of two kinds that are no pairs, and weights."""
  random = np.random.RandomState(0)
  made = []
  for rows in sizes:
    x = random.normal(size=(rows, 4)).astype('float32')
    y = 0.5 - random.normal(size=(rows, 4)).astype('float32') ** 2
    weights = random.uniform(0.5, 2.0, size=rows).astype('float32')
    made.append((x, y, weights))
  return made


def spoilt(index):
  """Five batches; one of them has a weight that is not a number."""
  data = batches([8] * 5)
  data[index][2][4] = np.nan
  return data


def net(inputs, outputs, activation=None, **options):
  layer = keras.layers.Dense(outputs, activation, **options)
  return keras.Sequential([keras.Input((inputs,)), layer])


def l1(one, other):
  return tf.reduce_mean(tf.abs(one - other), -1)


def l2(one, other):
  return tf.reduce_mean((one - other) ** 2, -1)


class Game(tftrain.Task):
  """Some nets, each with an optimizer and a loss; `terms` says which."""

  def __init__(self, **nets):
    super().__init__()
    rates = (1e-3, 2e-3, 4e-3, 8e-3)
    self.nets = nets
    self.rules = {
      name: keras.optimizers.Adam(rate, beta_1=0.5, epsilon=1e-3)
      for name, rate in zip(nets, rates, strict=False)
    }

  def pairs(self):
    return {name: (self.rules[name], net) for name, net in self.nets.items()}

  def losses(self, batch, training):
    del training
    return {
      name: sum(factor * tftrain.Loss(*term) for factor, *term in terms)
      for name, terms in self.terms(*batch).items()
    }

  def train_step(self, batch):
    return self.minimize(self.losses, batch, pairs=self.pairs())


class CycleGAN(Game):
  """Two translators and two critics (Zhu et al. 2017)."""

  def __init__(self):
    critic = functools.partial(net, 4, 1)
    super().__init__(g=net(4, 4), f=net(4, 4), dx=critic(), dy=critic())

  def terms(self, x, y, weights):
    del weights
    g, f, dx, dy = self.nets.values()
    made_y, made_x = g(x), f(y)
    cycle = l1(f(made_y), x) + l1(g(made_x), y)
    same = l1(g(y), y) + l1(f(x), x)
    fooled = l2(dy(made_y), 1.0) + l2(dx(made_x), 1.0)
    total = fooled + 10.0 * cycle + 5.0 * same
    return {
      'g': [(1.0, total)],
      'f': [(1.0, total)],
      'dx': [(0.5, l2(dx(x), 1.0) + l2(dx(made_x), 0.0))],
      'dy': [(0.5, l2(dy(y), 1.0) + l2(dy(made_y), 0.0))],
    }


class GAN(Game):
  """A generator with an L2 penalty, called twice, and a critic."""

  def __init__(self):
    l2 = keras.regularizers.L2(0.2)
    super().__init__(g=net(4, 4, 'tanh', kernel_regularizer=l2), d=net(4, 1))

  def terms(self, x, y, weights):
    del weights
    g, d = self.nets.values()
    made = d(g(x))
    return {
      'd': [(1.0, l2(d(y), 1.0) + l2(made, 0.0))],
      'g': [(1.0, l2(made, 1.0) + l1(g(y), y))],
    }


class Several(GAN):
  """Losses of several terms, each with a denominator of its own."""

  def terms(self, x, y, weights):
    g, d = self.nets.values()
    made = d(g(x))
    return {
      'g': [(1.0, l2(made, 1.0)), (0.5, l1(g(y), y), weights)],
      'd': [
        (1.0, l2(d(y), 1.0), weights),
        (2.0, l2(made, 0.0)),
        (0.3, d(y) ** 2, weights[:, tf.newaxis]),
      ],
    }


class Weighted(GAN):
  """A generator that sees the weights, and a critic that does not."""

  def terms(self, x, y, weights):
    g, d = self.nets.values()
    made = d(g(x))
    return {
      'd': [(1.0, l2(d(y), 1.0) + l2(made, 0.0))],
      'g': [(1.0, l2(made, 1.0), weights)],
    }


class Autoencoder(Game):
  """An encoder and a decoder, each with a rule, and one Loss of both."""

  def __init__(self):
    super().__init__(encoder=net(4, 2, 'tanh'), decoder=net(2, 4))
    self.fast = keras.optimizers.SGD(0.1, momentum=0.9)
    self.slow = keras.optimizers.Adam(1e-3, epsilon=1e-3)
    del self.rules

  def pairs(self):
    encoder, decoder = self.nets.values()
    return [(self.fast, encoder), (self.slow, decoder)]

  def terms(self, x, y, weights):
    encoder, decoder = self.nets.values()
    return {'': [(1.0, l2(decoder(encoder(x)), x), weights)]}

  def loss(self, batch, training):
    [(_, values, weights)] = self.terms(*batch)['']
    return tftrain.Loss(values, weights, error=values)

  def train_step(self, batch):
    return self.minimize(self.loss, batch, pairs=self.pairs())


def weights_of(task):
  return [w for net in task.nets.values() for w in net.get_weights()]


def oracle(make, data, change=lambda name, gradient: gradient):
  """(the weights after all, losses and gradient norms of the last step)."""
  keras.utils.set_random_seed(3)
  task = make()
  pairs = task.pairs()
  if isinstance(pairs, list):
    pairs = dict(zip(task.nets, pairs, strict=True))
  for optimizer in {id(rule): rule for rule, _ in pairs.values()}.values():
    nets = [net for rule, net in pairs.values() if rule is optimizer]
    optimizer.build([v for net in nets for v in net.trainable_variables])
  for batch in data:
    with tf.GradientTape(persistent=True) as tape:
      losses = {
        name: sum(factor * _mean(*term) for factor, *term in terms)
        + sum(sum(net.losses) for net in task.nets.values())
        for name, terms in task.terms(*map(tf.constant, batch)).items()
      }
    gradients = {
      name: [
        change(name, gradient)
        for gradient in tape.gradient(
          losses.get(name, losses.get('')), net.trainable_variables
        )
      ]
      for name, (_, net) in pairs.items()
    }
    for name, (optimizer, net) in pairs.items():
      optimizer.apply(gradients[name], net.trainable_variables)
  norms = {n: float(tf.linalg.global_norm(g)) for n, g in gradients.items()}
  return weights_of(task), {n: float(v) for n, v in losses.items()}, norms


def _mean(values, weights=None):
  if weights is None:
    return tf.reduce_mean(values)
  weights = tf.broadcast_to(weights, values.shape)
  return tf.reduce_sum(values * weights) / tf.reduce_sum(weights)


def trainer(make, data, strategy='one_device', **options):
  keras.utils.set_random_seed(3)
  if isinstance(data, list):
    data = tftrain.data.DatasetPipeline(data, repeat=False)
  return small_tasks.trainer(
    data,
    make,
    strategy,
    log_every=1,
    update=tftrain.Update(**options),
  )


def assert_weights(task, expected):
  for found, value in zip(weights_of(task), expected, strict=True):
    np.testing.assert_allclose(found, value, rtol=0, atol=1e-6)


def assert_trained(make, data, strategy, options, expected=None):
  """A run has the weights, losses and norms of the oracle."""
  weights, losses, norms = expected or oracle(make, data)
  run = trainer(make, data, strategy, **options)
  scalars = run.train(len(data)).scalars
  assert_weights(run.task, weights)
  for name, loss in losses.items():
    key = f'{name}/loss' if name else 'loss'
    np.testing.assert_allclose(scalars[key], loss, rtol=1e-5, err_msg=key)
  names = {'encoder': 'fast', 'decoder': 'slow'}
  for name, norm in norms.items():
    key = f'{names.get(name, name)}/gradient_norm'
    np.testing.assert_allclose(scalars[key], norm, rtol=1e-5, err_msg=key)


# Equal to a tape. The last batch has 5 rows: for no way do they divide.


@ways('plain')
def test_a_cycle_gan_equals_a_persistent_tape(strategy, options):
  assert_trained(CycleGAN, batches(), strategy, options)


@pytest.mark.slow
@ways('two replicas', without=['plain'])
def test_a_penalty_counts_once_in_each_loss(strategy, options):
  assert_trained(GAN, batches(), strategy, options)


@ways(without=['two replicas, xla'])
def test_each_term_of_each_loss_has_its_own_denominator(strategy, options):
  assert_trained(Several, batches(), strategy, options)


@ways('accumulate')
def test_an_encoder_and_a_decoder_share_a_loss(strategy, options):
  assert_trained(Autoencoder, batches(), strategy, options)


@pytest.mark.slow
@pytest.mark.parametrize('kind', [CycleGAN, Several, Autoencoder])
def test_blocks_of_steps_in_xla_equal_a_tape(kind):
  data = batches([8] * 4)
  weights, _, _ = oracle(kind, data)
  whole = [np.concatenate(leaves) for leaves in zip(*data, strict=True)]
  arrays = tftrain.Arrays(tuple(whole), 8, training=False)
  run = trainer(kind, arrays, jit='block')
  run.train(4)
  assert_weights(run.task, weights)


@pytest.mark.slow
@pytest.mark.parametrize('kind', [CycleGAN, Several])
def test_a_batch_of_fewer_rows_than_parts(kind):
  data = batches([8, 1, 3, 2])
  assert_trained(kind, data, 'mirrored', {'accumulate': 2})


class OneRule(GAN):
  """One optimizer for both losses, which moves twice in a step."""

  def __init__(self):
    super().__init__()
    self.rules['d'] = self.rules['g']


class TwoRules(Autoencoder):
  """Two optimizers that both train the decoder."""

  def pairs(self):
    _, decoder = self.nets.values()
    return [(self.fast, decoder), (self.slow, decoder)]


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
@pytest.mark.parametrize('kind', [OneRule, TwoRules])
def test_an_optimizer_or_a_net_may_be_in_two_pairs(kind, strategy):
  weights, _, _ = oracle(kind, batches())
  run = trainer(kind, batches(), strategy)
  run.train(3)
  assert_weights(run.task, weights)


# What is reported.


class Named(GAN):
  """Losses with metrics, under a name of the step's own."""

  prefix = ''

  def losses(self, batch, training):
    rows = batch[2]
    losses = super().losses(batch, training)
    return {n: loss + tftrain.Loss(rows, m=rows) for n, loss in losses.items()}

  def train_step(self, batch):
    return self.minimize(
      self.losses, batch, pairs=self.pairs(), name=self.prefix
    )

  def loss(self, batch, training):
    return self.losses(batch, training)


class NamedPair(Autoencoder):
  prefix = ''

  def train_step(self, batch):
    return self.minimize(self.loss, batch, pairs=self.pairs(), name=self.prefix)


def names(kind, prefix):
  def make():
    task = kind()
    task.prefix = prefix
    return task

  return set(trainer(make, batches()).tags)


def test_each_loss_and_each_optimizer_is_reported_by_its_name():
  own = ('loss', 'm', 'gradient_norm', 'update_ratio')
  expected = {f'{net}/{name}' for net in 'gd' for name in own}
  assert names(Named, '') == expected
  assert names(Named, 'gan') == {f'gan/{name}' for name in expected}
  own = ('gradient_norm', 'update_ratio')
  expected = {f'{rule}/{name}' for rule in ('fast', 'slow') for name in own}
  expected |= {'loss', 'error'}
  assert names(NamedPair, '') == expected
  assert names(NamedPair, 'all') == {f'all/{name}' for name in expected}


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_an_evaluation_reports_each_loss(strategy):
  run = trainer(Named, batches(), strategy)
  found = tftrain.Evaluator(run.task, batches(), strategy=run.strategy)
  whole = [np.concatenate(leaves) for leaves in zip(*batches(), strict=True)]
  rows = whole[2].mean()
  _, losses, _ = oracle(Named, [whole])
  expected = {f'{net}/loss': loss + rows for net, loss in losses.items()}
  expected |= {f'{net}/m': rows for net in losses}
  assert found.evaluate() == pytest.approx(expected, rel=1e-5)


# Gradients in hand, and steps that move nothing.


class Changing(GAN):
  """Changes the gradients before it applies them, the last one first."""

  def train_step(self, batch):
    found = self.gradients(self.losses, batch, pairs=self.pairs())
    for name in reversed(found):
      gradients = found[name]
      values = [changed(name, value) for value in gradients.values]
      step = self.apply(gradients._replace(values=values), name=name)
    return step


class ChangingPair(Autoencoder):
  def train_step(self, batch):
    fast, slow = self.gradients(self.loss, batch, pairs=self.pairs())
    values = [changed('g', value) for value in fast.values]
    self.apply(fast._replace(values=values), name='fast')
    return self.apply(slow, name='slow')


def changed(name, gradient):
  return tf.sign(gradient) if name in ('g', 'encoder') else 3.0 * gradient


@pytest.mark.slow
@pytest.mark.parametrize(
  ('strategy', 'options'),
  [
    ('one_device', {}),
    ('mirrored', {}),
    ('one_device', {'accumulate': 2}),
    ('mirrored', {'loss_scale': 8.0}),
    ('one_device', {'jit': 'step'}),
  ],
)
def test_changed_gradients_are_applied(strategy, options):
  expected = oracle(GAN, batches(), changed)
  assert_trained(Changing, batches(), strategy, options, expected)


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_changed_gradients_of_a_shared_loss_are_applied(strategy):
  only = lambda name, g: changed(name, g) if name == 'encoder' else g
  weights, losses, norms = oracle(Autoencoder, batches(), only)
  run = trainer(ChangingPair, batches(), strategy)
  scalars = run.train(3).scalars
  assert_weights(run.task, weights)
  for name, net in (('fast', 'encoder'), ('slow', 'decoder')):
    found = [scalars[f'{name}/{what}'] for what in ('loss', 'gradient_norm')]
    np.testing.assert_allclose(found, [losses[''], norms[net]], rtol=1e-5)


class Sometimes(GAN):
  """Moves where the first number of a batch is positive."""

  def train_step(self, batch):
    return self.minimize(
      self.losses, batch, pairs=self.pairs(), when=batch[0][0, 0] > 0
    )


@pytest.mark.slow
@ways(without=['loss scale', 'two replicas, loss scale'])
def test_when_it_is_not_to_move_nothing_changes(strategy, options):
  data = batches()
  data[1][0][0, 0] = -1.0
  assert [batch[0][0, 0] > 0 for batch in data] == [True, False, True]
  run = trainer(Sometimes, data, strategy, **options)
  first, before = run.train(1), state(run)
  second = run.train(2)
  small_tasks.assert_same_bits(before, state(run))
  assert 'g/loss' in first.scalars and 'g/loss' not in second.scalars
  run.train(3)
  weights, _, _ = oracle(GAN, [data[0], data[2]])
  assert_weights(run.task, weights)
  updates = [state(run)[f'rules/{name}/iterations'] for name in 'gd']
  assert updates == [2, 2]


def state(run):
  """All but the counters of the Trainer."""
  state = small_tasks.state_of(run)
  return {k: v for k, v in state.items() if not k.startswith('trainer/')}


@pytest.mark.parametrize(
  ('order', 'strategy'),
  [
    ('dg', 'one_device'),
    pytest.param('gd', 'one_device', marks=pytest.mark.slow),
    pytest.param('dg', 'mirrored', marks=pytest.mark.slow),
  ],
)
def test_a_loss_that_is_not_finite_ends_the_run_and_moves_no_net(
  order, strategy
):
  class Ordered(Weighted):
    def pairs(self):
      pairs = super().pairs()
      return {name: pairs[name] for name in order}

  run = trainer(Ordered, spoilt(2), strategy)
  run.train(2)
  before = state(run)
  with error_lines.refused(errors.NonFiniteError, 'step 3', 'loss nan'):
    run.train(5)
  small_tasks.assert_same_bits(before, state(run))


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
@pytest.mark.parametrize('kind', [Weighted, Autoencoder])
def test_a_skipped_step_moves_no_net(kind, strategy):
  data = spoilt(2)
  run = trainer(kind, data, strategy, max_skips=1)
  run.train(2)
  before = state(run)
  run.train(3)
  small_tasks.assert_same_bits(before, state(run))
  assert run.train(5).scalars['skipped_steps'] == 1
  weights, _, _ = oracle(kind, data[:2] + data[3:])
  assert_weights(run.task, weights)


@pytest.mark.slow
@pytest.mark.parametrize('kind', [Several, Autoencoder])
def test_a_restored_run_goes_on_as_if_unbroken(tmp_path, kind):
  make = lambda: trainer(kind, tftrain.Arrays(batches([40])[0], 8), ema=0.9)
  unbroken = make()
  unbroken.train(3, [tftrain.Checkpointer(tmp_path, unbroken)])
  unbroken.train(7)
  run = make()
  assert tftrain.Checkpointer(tmp_path, run).restore() == 3
  run.train(7)
  small_tasks.assert_same_bits(
    small_tasks.state_of(run), small_tasks.state_of(unbroken)
  )


# What is refused, before the first step.


def test_names_of_losses_and_pairs_that_differ():
  def some(task, batch):
    pairs = {'g': task.pairs()['g']}
    return task.minimize(task.losses, batch, pairs=pairs)

  refused(some, "returned 'd', 'g'", "pairs for 'g'", 'same names')

  def another(task, batch):
    pairs = task.pairs()
    return task.minimize(
      task.losses, batch, pairs={'d': pairs['d'], 'G': pairs['g']}
    )

  refused(another, "returned 'd', 'g'", "pairs for 'G', 'd'")

  def in_a_list(task, batch):
    pairs = list(task.pairs().values())
    return task.minimize(task.losses, batch, pairs=pairs)

  refused(in_a_list, "returned 'd', 'g'", 'one Loss')

  def one_loss(task, batch):
    loss = lambda batch, training: task.losses(batch, training)['g']
    return task.minimize(loss, batch, pairs=task.pairs())

  refused(one_loss, 'returned one Loss', "pairs for 'd', 'g'")

  def no_pairs(task, batch):
    return task.minimize(task.losses, batch, None, task.rules['g'])

  refused(no_pairs, "returned 'd', 'g'", 'one Loss')


def refused(train_step, *fragments):
  class Wrong(GAN):
    def train_step(self, batch):
      return train_step(self, batch)

  with error_lines.refused(errors.TaskError, *fragments):
    Wrong().build(batches([2])[0], tftrain.Update())


@pytest.mark.parametrize(
  ('pairs', 'got'),
  [
    (lambda _: [], 'none'),
    (lambda _: {}, 'none'),
    (lambda task: task.nets, 'Sequential'),
    (lambda task: list(task.rules.values()), 'Adam'),
    (lambda task: task.pairs()['g'], 'Adam'),
    (lambda task: {'g': (*task.pairs()['g'], 0.1)}, 'tuple'),
  ],
  ids=['[]', '{}', 'nets', 'rules', 'one pair', 'of three'],
)
def test_pairs_that_are_none(pairs, got):
  for call in ('minimize', 'gradients'):
    refused(
      lambda task, batch, call=call: getattr(task, call)(
        task.losses, batch, pairs=pairs(task)
      ),
      '(optimizer, variables)',
      f'got {got}',
    )


def test_pairs_beside_variables_or_an_optimizer():
  for call in ('minimize', 'gradients'):
    for name, what in (('variables', 'nets'), ('optimizer', 'rules')):

      def both(task, batch, call=call, name=name, what=what):
        others = {name: getattr(task, what)['g']}
        method = getattr(task, call)
        return method(task.losses, batch, pairs=task.pairs(), **others)

      refused(both, 'pairs', 'variables or an optimizer', 'either')


def test_losses_that_are_none():
  def nothing(task, batch):
    return task.minimize(lambda batch, training: {}, batch, pairs=task.pairs())

  refused(nothing, 'loss() returned {}', 'name -> Loss')

  def numbers(task, batch):
    loss = lambda batch, training: {'g': 1.0, 'd': 2.0}
    return task.minimize(loss, batch, pairs=task.pairs())

  refused(numbers, 'loss() returned float', 'tftrain.Loss(values)')


def test_a_net_that_its_loss_does_not_reach():
  def swapped(task, batch):
    (d, rule), (g, other) = (p[::-1] for p in task.pairs().values())
    loss = lambda batch, training: {
      name: tftrain.Loss(task.nets['g'](batch[0])[:, 0]) for name in 'dg'
    }
    return task.minimize(loss, batch, pairs={'d': (rule, d), 'g': (other, g)})

  refused(swapped, 'no gradient reaches')
