"""Benchmarks of the update: whole steps and each option, as time ratios.

  python benchmarks/updates.py
  python benchmarks/updates.py --replicas=2

Contestants of one case train the same model in one process and take turns, as
in steps.py; the reported ratio is the median over rounds. Sections (`--only`):

compile: Seconds to trace the step of examples/digits.py, in a process that has
  traced nothing before and then again. The first block, of one step, is also
  shown: it includes TensorFlow's optimization of a new graph.
step: Whole steps with AdamW, clipped to the global norm 1. `hand` is the loop
  in a `tf.function`: `for _ in tf.range(100)`, `next(iterator)`, GradientTape,
  `AdamW(global_clipnorm=1.0).apply_gradients`, two Keras metrics. tftrain has
  `Update(clip_norm=1.0)`, and runs on the same tf.data input, so that only the
  step differs, and on `Arrays`. Only tftrain checks that every step is finite.
step with `--replicas=2`: The same on logical CPU devices. `hand` has a default
  MirroredStrategy, an `experimental_distribute_dataset` and
  `strategy.run`; `hand, same reduction` has tftrain's MirroredStrategy, which
  reduces on one device. The optimizer of both clips the gradient of each
  replica before the reduction: that is less correct than clipping the mean
  gradient once, as tftrain does, and no less work. No other section runs with
  this flag, because logical devices change the speed of one device.
accumulate: The time of one tftrain step on 128 rows with
  `Update(accumulate=4)`, divided by that of four forward and backward passes of
  32 rows by hand, gradients added up, and one `apply_gradients`. The passes run
  either sequentially in a `tf.range(4)` (`hand, in a row`), which saves
  memory, or unrolled (`hand, unrolled`), so that TensorFlow may run them in
  parallel. The same tf.data input, the same kind of loop, and no clipping.
features: tftrain with a feature, divided by tftrain without, on `Arrays`.
  `plain` reports the loss alone; `metrics` also the accuracy and the mean of
  the largest logit.
buckets: 8 dense layers of one width, all weights in one bucket, divided by all
  weights separate. `fused_variables.SMALL` should separate weights for which
  the ratio is above 1.

Every 100 steps (25 where they are long) all contestants read and reset their
metrics; for tftrain that is a Report. There are no Actions.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import json
import pathlib
import statistics
import sys
import time
from typing import Any

from absl import app
from absl import flags
from absl import logging
import keras
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import step_contestants as contestants_lib
from benchmarks import step_workloads as workloads
from benchmarks import steps as engine
from examples import digits
import tftrain
from tftrain.distribute import strategy as strategy_lib
from tftrain.interop import patching
from tftrain.step import fused_variables

SECTIONS = ('compile', 'step', 'accumulate', 'features', 'buckets')

# Flags of steps.py that do not apply here; `only` is redefined below.
for _name in ('model', 'shared_input', 'only', 'jax_python', 'chart'):
  delattr(flags.FLAGS, _name)
flags.FLAGS.set_default('warm_up', 100)

_ONLY = flags.DEFINE_list('only', None, 'Sections to run; default: all.')
_REPLICAS = flags.DEFINE_integer(
  'replicas', 1, 'Logical CPU devices to train on.', lower_bound=1
)

MICRO_BATCHES = 4


# Workloads.


SMALL = workloads.dense(20, 64, steps=500)
DEEP = workloads.dense(60, 32, steps=200)
WIDE = workloads.dense(4, 1024, steps=25)
CONVNET = workloads.WORKLOADS['convnet']


# Contestants.


def make_optimizer(clip_norm: float | None = None) -> keras.Optimizer:
  return keras.optimizers.AdamW(1e-3, global_clipnorm=clip_norm)


def block(workload: workloads.Workload) -> int:
  """Returns the steps between two readings of the metrics."""
  return min(contestants_lib.BLOCK, workload.steps)


def largest_logit(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
  del labels
  return tf.reduce_max(logits, -1)


ACCURACY = {'accuracy': keras.metrics.sparse_categorical_accuracy}
TWO_METRICS = {**ACCURACY, 'largest_logit': largest_logit}


def tftrain_loop(
  workload: workloads.Workload,
  data: Callable[[workloads.Workload], tftrain.data.Pipeline],
  strategy: tf.distribute.Strategy,
  metrics: Mapping[str, Callable[..., Any]] = ACCURACY,
  jit: str = 'off',
  **update: Any,
) -> contestants_lib.Contestant:
  """Returns a Trainer; `update` are the arguments of `tftrain.Update`."""
  with strategy.scope():
    task = tftrain.SupervisedTask(
      workload.make_model(),
      loss=workloads.make_loss(),
      optimizer=make_optimizer(),
      metrics=metrics,
    )
  trainer = tftrain.Trainer(
    task,
    data(workload),
    update=tftrain.Update(jit=jit, **update),
    strategy=strategy,
    steps_per_loop=block(workload),
    log_every=block(workload),
  )
  reports = trainer.steps(contestants_lib.NEVER)

  def run(steps: int) -> workloads.Scalars:
    for _ in range(steps // block(workload)):  # each ends with a Report
      report = next(reports)
    return report.scalars

  return run


def same_input(workload: workloads.Workload) -> tftrain.data.Pipeline:
  return tftrain.data.DatasetPipeline(workload.dataset())


def arrays(workload: workloads.Workload) -> tftrain.data.Pipeline:
  return tftrain.Arrays(workload.arrays(), workload.batch_size)


class HandStep(workloads.HandStep):
  """A hand-written step of one replica, with AdamW."""

  def __init__(self, workload: workloads.Workload, clip_norm: float | None):
    super().__init__(workload)
    self.optimizer = make_optimizer(clip_norm)
    self.optimizer.build(self.model.trainable_variables)

  def gradients(
    self, images: tf.Tensor, labels: tf.Tensor, parts: int = 1
  ) -> list[tf.Tensor]:
    """Returns the gradients of one of `parts` micro-batches; they add up."""
    # Keras divides a loss by the number of replicas.
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    with tf.GradientTape() as tape:
      logits = self.model(images, training=True)
      loss = self._loss(labels, logits)
      share = loss / parts
    self._metrics['loss'].update_state(loss * replicas)
    self._metrics['accuracy'].update_state(labels, logits)
    return tape.gradient(share, self.model.trainable_variables)

  def apply(self, gradients: Iterable[tf.Tensor]) -> None:
    variables = self.model.trainable_variables
    self.optimizer.apply_gradients(zip(gradients, variables, strict=True))

  def take(self, batch: tuple[tf.Tensor, tf.Tensor]) -> None:
    self.apply(self.gradients(*batch))

  def take_in_a_row(self, batch: tuple[tf.Tensor, tf.Tensor]) -> None:
    """Trains on micro-batches in sequence, which reuses memory."""
    images, labels = (
      tf.reshape(rows, (MICRO_BATCHES, -1, *rows.shape[1:])) for rows in batch
    )
    sums = [tf.zeros(v.shape) for v in self.model.trainable_variables]
    for part in tf.range(MICRO_BATCHES):
      found = self.gradients(images[part], labels[part], MICRO_BATCHES)
      sums = [a + b for a, b in zip(sums, found, strict=True)]
    self.apply(sums)

  def take_unrolled(self, batch: tuple[tf.Tensor, tf.Tensor]) -> None:
    """Trains on micro-batches that TensorFlow may run in parallel."""
    parts = zip(*(tf.split(rows, MICRO_BATCHES) for rows in batch), strict=True)
    found = [self.gradients(*part, MICRO_BATCHES) for part in parts]
    self.apply([tf.add_n(each) for each in zip(*found, strict=True)])


def hand_loop(
  workload: workloads.Workload,
  strategy: tf.distribute.Strategy,
  clip_norm: float | None = None,
  take: Callable[[HandStep, Any], None] = HandStep.take,
) -> contestants_lib.Contestant:
  """Runs the loop in the graph."""
  with strategy.scope():
    step = HandStep(workload, clip_norm)
  dataset = workload.dataset()
  if strategy.num_replicas_in_sync > 1:
    dataset = strategy.experimental_distribute_dataset(dataset)
  iterator = iter(dataset)

  @tf.function
  def loop(iterator: Any, n: tf.Tensor) -> None:
    for _ in tf.range(n):
      if strategy.num_replicas_in_sync > 1:
        strategy.run(take, args=(step, next(iterator)))
      else:
        take(step, next(iterator))

  n = tf.constant(block(workload))

  def run(steps: int) -> workloads.Scalars:
    for _ in range(steps // block(workload)):
      loop(iterator, n)
      scalars = step.read()
    return scalars

  return run


# Cases.


@dataclasses.dataclass(frozen=True)
class Figure:
  """Ratios or seconds of each round, with a bound for their median."""

  title: str
  values: Sequence[float]
  relation: str = '<='
  asked: float | None = None

  def line(self) -> str:
    median = statistics.median(self.values)
    span = f'{min(self.values):.2f}-{max(self.values):.2f}'
    line = f'  {self.title:45} {median:6.2f} {span:>11}'
    if self.asked is None:
      return line
    sign = 1 if self.relation == '>=' else -1
    verdict = 'met' if sign * (median - self.asked) >= 0 else 'MISSED'
    return f'{line}  asked {self.relation} {self.asked:.2f}: {verdict}'


@dataclasses.dataclass(frozen=True)
class Case:
  """Contestants that take turns, and the ratios to report.

  An ask is (numerator, denominator, relation, bound); both are contestants.
  """

  section: str
  workload: workloads.Workload
  contestants: Mapping[str, Callable[[], contestants_lib.Contestant]]
  asks: Sequence[tuple[str, str, str, float | None]]

  @property
  def title(self) -> str:
    workload = self.workload
    return f'{self.section}: {workload.title}, batch {workload.batch_size}'


def step_cases(strategy: tf.distribute.Strategy) -> Iterator[Case]:
  hands = {'hand': strategy}
  if strategy.num_replicas_in_sync > 1:
    devices = strategy.extended.worker_devices
    hands = {
      'hand': tf.distribute.MirroredStrategy(devices),
      'hand, same reduction': strategy,
    }
  for workload, asked in ((SMALL, 1.3), (DEEP, 1.7), (WIDE, 0.98)):
    ours = functools.partial(
      tftrain_loop, workload, strategy=strategy, clip_norm=1.0
    )
    by_hand = functools.partial(hand_loop, workload, clip_norm=1.0)
    yield Case(
      'step',
      workload,
      {
        **{n: functools.partial(by_hand, s) for n, s in hands.items()},
        contestants_lib.SAME_INPUT: functools.partial(ours, data=same_input),
        'tftrain': functools.partial(ours, data=arrays),
      },
      [
        *((name, contestants_lib.SAME_INPUT, '>=', asked) for name in hands),
        ('hand', 'tftrain', '>=', None),
      ],
    )


def accumulate_cases(strategy: tf.distribute.Strategy) -> Iterator[Case]:
  for small in (CONVNET, SMALL, WIDE):
    workload = dataclasses.replace(
      small, batch_size=32 * MICRO_BATCHES, steps=min(small.steps, 100)
    )
    hand = functools.partial(hand_loop, workload, strategy)
    names = {
      'hand, in a row': HandStep.take_in_a_row,
      'hand, unrolled': HandStep.take_unrolled,
    }
    ours = f'tftrain, accumulate={MICRO_BATCHES}'
    yield Case(
      'accumulate',
      workload,
      {
        **{n: functools.partial(hand, take=t) for n, t in names.items()},
        ours: functools.partial(
          tftrain_loop, workload, same_input, strategy, accumulate=MICRO_BATCHES
        ),
      },
      [(ours, name, '<=', 1.10) for name in names],
    )


def features_cases(strategy: tf.distribute.Strategy) -> Iterator[Case]:
  step = functools.partial(tftrain_loop, CONVNET, arrays, strategy, metrics={})
  yield Case(
    'features',
    CONVNET,
    {
      'plain': step,
      'ema=0.999': functools.partial(step, ema=0.999),
      'clip_norm=1.0': functools.partial(step, clip_norm=1.0),
      'metrics': functools.partial(step, metrics=TWO_METRICS),
    },
    [
      ('ema=0.999', 'plain', '<=', 1.05),
      ('clip_norm=1.0', 'plain', '<=', 1.05),
      ('metrics', 'plain', '<=', 1.03),
    ],
  )


def buckets_cases(strategy: tf.distribute.Strategy) -> Iterator[Case]:
  for width, steps in ((64, 500), (96, 300), (128, 200), (256, 100)):
    workload = workloads.dense(8, width, steps)

    def ours(
      small: int, workload: workloads.Workload
    ) -> contestants_lib.Contestant:
      with patching.overridden([(fused_variables, 'SMALL', small)]):
        return tftrain_loop(workload, arrays, strategy)

    yield Case(
      'buckets',
      workload,
      {
        'together': functools.partial(ours, width**2, workload),
        'apart': functools.partial(ours, 0, workload),
      },
      [('together', 'apart', '<=', None)],
    )


# The benchmark.


CASES = {
  'step': step_cases,
  'accumulate': accumulate_cases,
  'features': features_cases,
  'buckets': buckets_cases,
}


def time_compilation() -> dict[str, Any]:
  """Prints and returns the seconds to trace the step of the digits."""
  print('\ncompile: examples/digits.py, seconds')
  traced, first_step = [], []
  for _ in range(max(2, flags.FLAGS.rounds)):
    trainer = tftrain.Trainer(
      digits.make_task(),
      digits.train_data(),
      update=tftrain.Update(jit='off'),
    )
    begun = time.perf_counter()
    next(trainer.steps(1))
    first_step.append(time.perf_counter() - begun)
    traced.append(trainer.loop.compile_seconds)
  return publish(
    [
      Figure('trace, first in the process', traced[:1], '<=', 3.0),
      Figure('trace and first step, first', first_step[:1], '<=', 3.0),
      Figure('trace, again', traced[1:]),
      Figure('trace and first step, again', first_step[1:]),
    ]
  )


def time_case(case: Case) -> dict[str, Any]:
  """Prints and returns the times of the contestants."""
  steps = flags.FLAGS.steps or case.workload.steps
  print(f'\n{case.title}, {steps} steps\n{"":44} us/step   loss   acc')
  # In two passes: while one is made and traced, TensorFlow forgets what it has
  # compiled of the others, and would do it again in the first round.
  runs = {name: make() for name, make in case.contestants.items()}
  for warm_up in (block(case.workload), flags.FLAGS.warm_up):
    for run in runs.values():
      run(warm_up)
  times, scalars = engine.measure(runs, steps, flags.FLAGS.rounds)
  for name, values in times.items():
    line = f'  {name:42} {statistics.median(values):7.0f}'
    line += f' {scalars[name]["loss"]:6.3f}'
    accuracy = scalars[name].get('accuracy')
    print(line if accuracy is None else f'{line} {accuracy:5.3f}')
  figures = [
    Figure(f'{a} / {b}', engine.ratios(times, a, b), relation, asked)
    for a, b, relation, asked in case.asks
  ]
  return {'steps': steps, 'microseconds_per_step': times, **publish(figures)}


def publish(figures: Sequence[Figure]) -> dict[str, Any]:
  print('\n'.join(figure.line() for figure in figures), flush=True)
  return {'figures': [dataclasses.asdict(figure) for figure in figures]}


def sections() -> list[str]:
  possible = SECTIONS if _REPLICAS.value == 1 else ('step',)
  chosen = _ONLY.value or possible
  if not set(chosen) <= set(possible):
    raise app.UsageError(f'--only takes some of {", ".join(possible)} here')
  return [name for name in possible if name in chosen]


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'what is {argv[1]!r}?')
  chosen = sections()
  tf.get_logger().setLevel('ERROR')  # it warns of each loop that is traced
  logging.set_verbosity(logging.WARNING)
  kind = 'one_device'
  if _REPLICAS.value > 1:
    strategy_lib.set_local_devices(_REPLICAS.value)
    kind = 'mirrored'
  strategy = tftrain.make_strategy(kind)
  ran = {**engine.settings(SMALL, 0), 'replicas': _REPLICAS.value}
  for name in ('model', 'batch_size', 'steps'):  # those of each case
    del ran[name]
  print(', '.join(f'{key} {value}' for key, value in ran.items()))
  report = {}
  for name in chosen:
    if name == 'compile':  # first: nothing else may have been traced
      report[name] = time_compilation()
      continue
    for case in CASES[name](strategy):
      report[case.title] = time_case(case)
  if flags.FLAGS.json:
    text = json.dumps({**ran, 'cases': report}, indent=2) + '\n'
    pathlib.Path(flags.FLAGS.json).write_text(text, encoding='utf-8')


if __name__ == '__main__':
  app.run(main)
