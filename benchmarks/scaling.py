"""Scaling model of a run on many hosts: throughput and its limits.

  python benchmarks/scaling.py                       # with the numbers below
  python benchmarks/scaling.py --hosts=64 --batch_size=8192 --gradient_mb=400
  python benchmarks/scaling.py --measure             # numbers of this machine

A step takes as long as the slower of its data and its work: rows divided among
all replicas, a fixed cost, and a ring all-reduce of the gradients. Saves and
failures take a share of the remaining time: a failure of any host ends the
attempt and costs a restart and half a checkpoint interval (Young 1974, "A
first order approximation to the optimum checkpoint interval"). docs/scaling.md
explains the numbers and the remedy for each limit.
"""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

_DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class Run:
  """Parameters of a run; times in seconds, sizes in megabytes.

  Attributes:
    batch_size: Rows of a global batch.
    replicas: Replicas on each host.
    row: Time of one row on one replica, forward and backward.
    fixed: Time of a step that does not depend on its rows.
    gradient_mb: Gradients of all weights; float32 takes 4 bytes each.
    network_mb: Network bandwidth of a host per second.
    latency: Latency of one message between hosts.
    input_rows: Rows per second that the input pipeline of one host makes.
    own_rows: 1 if a host makes only its own rows, 0 if it makes all rows.
    checkpoint_mb: Weights and slot variables of the optimizer.
    disk_mb: Write bandwidth of the chief per second.
    stall: Time for which a save blocks the training loop.
    checkpoint_every: Time between two saves.
    restart: Time from a failure to the next step.
    failures: Failures of one host per day.
  """

  # Digits, a convnet, two cores, loopback: medians of three --measure and of
  # replicas.py --start; disk_mb and failures are a guess.
  batch_size: float = 1024
  replicas: float = 1
  row: float = 2.1e-5
  fixed: float = 5.6e-4
  gradient_mb: float = 0.04
  network_mb: float = 268
  latency: float = 8.5e-4
  input_rows: float = 5.3e5
  own_rows: float = 1
  checkpoint_mb: float = 0.12
  disk_mb: float = 200
  stall: float = 0.018
  checkpoint_every: float = 600
  restart: float = 10
  failures: float = 0.01

  # Times of one step on `hosts` hosts.

  def work(self, hosts: int) -> float:
    return self.batch_size / (hosts * self.replicas) * self.row

  def all_reduce(self, hosts: int) -> float:
    """Returns the ring's time: 2 (n - 1) messages of 1/n of the gradients."""
    if hosts == 1:
      return 0.0
    messages = 2 * (hosts - 1)
    each = self.latency + self.gradient_mb / hosts / self.network_mb
    # The vote on stops and the end of data is a second ring.
    return messages * each + messages * self.latency

  def data(self, hosts: int) -> float:
    rows = self.batch_size / (hosts if self.own_rows else 1)
    return rows / self.input_rows

  def step(self, hosts: int) -> float:
    training = self.fixed + self.work(hosts) + self.all_reduce(hosts)
    return max(training, self.data(hosts))

  # Shares of the time.

  def saving(self) -> float:
    """Returns the share lost to saves, which never overlap each other."""
    between = max(self.checkpoint_every, self.checkpoint_mb / self.disk_mb)
    return min(1.0, self.stall / between)

  def failing(self, hosts: int) -> float:
    """Returns the share lost to failures: restarts and repeated work."""
    between = max(self.checkpoint_every, self.checkpoint_mb / self.disk_mb)
    each = self.restart + between / 2
    return min(1.0, hosts * self.failures / _DAY * each)

  def best_interval(self, hosts: int) -> float:
    """Returns Young's interval: the least cost of saves and repeated work."""
    return math.sqrt(2 * self.stall * _DAY / (hosts * self.failures))

  def rows_per_second(self, hosts: int) -> float:
    useful = (1 - self.saving()) * (1 - self.failing(hosts))
    return self.batch_size / self.step(hosts) * useful


@dataclasses.dataclass(frozen=True)
class Limit:
  """A limit of scaling.

  Attributes:
    name: Description of the bottleneck.
    holds: Returns whether it limits a run on the given number of hosts.
    help: Remedies.
  """

  name: str
  holds: Callable[[Run, int], bool]
  help: str


LIMITS = (
  Limit(
    'the all-reduce takes longer than the work',
    lambda run, n: run.all_reduce(n) > run.work(n),
    'a larger batch_size; Update.accumulate; a faster network',
  ),
  Limit(
    'the fixed cost of a step is more than the work',
    lambda run, n: run.fixed > run.work(n),
    'a larger batch_size; steps_per_loop; Update.jit',
  ),
  Limit(
    'the data are slower than the training',
    lambda run, n: run.data(n) >= run.step(n),
    'data of which each makes only its own rows; Examples.cache; decode less',
  ),
  Limit(
    'failures cost more than 5 % of the time',
    lambda run, n: run.failing(n) > 0.05,
    'Experiment.checkpoint_every, see the best interval; --max_restarts',
  ),
  Limit(
    'another host adds nothing',
    lambda run, n: run.rows_per_second(n + 1) <= run.rows_per_second(n),
    'all of the above',
  ),
)
MOST = 1 << 14


def first(run: Run, limit: Limit) -> int | None:
  """Returns the smallest number of hosts at `limit`; None up to MOST."""
  return next((n for n in range(1, MOST) if limit.holds(run, n)), None)


def table(run: Run, hosts: int) -> Iterator[str]:
  yield (
    f'{"hosts":>6} {"rows/s":>9} {"of ideal":>8} {"work ms":>8} '
    f'{"reduce ms":>9} {"data ms":>8} {"failing":>8} {"save every":>10}'
  )
  counts = [1 << i for i in range(hosts.bit_length())]
  for n in counts:
    ideal = n * run.rows_per_second(1)
    yield (
      f'{n:6} {run.rows_per_second(n):9.0f} '
      f'{run.rows_per_second(n) / ideal:8.0%} {1e3 * run.work(n):8.2f} '
      f'{1e3 * run.all_reduce(n):9.2f} {1e3 * run.data(n):8.2f} '
      f'{run.failing(n):8.2%} {run.best_interval(n):8.0f} s'
    )
  yield ''
  for limit in LIMITS:
    found = first(run, limit)
    when = f'never up to {MOST}' if found is None else f'from {found} hosts on'
    yield f'{limit.name}: {when} ({limit.help})'


# Measurements of this machine.


def measure() -> dict[str, float]:
  """Times digits on one device, a save, and an all-reduce of two workers."""
  from benchmarks import step_workloads as workloads
  import tftrain

  workload = workloads.WORKLOADS['convnet']
  seconds = {}
  with tempfile.TemporaryDirectory() as directory:
    for rows in (32, 256):
      task = tftrain.SupervisedTask(
        workload.make_model(), workloads.make_loss(), workloads.make_optimizer()
      )
      data = tftrain.Arrays(workload.arrays(), rows)
      off = tftrain.Update(jit='off')
      trainer = tftrain.Trainer(task, data, log_every=10**6, update=off)
      trainer.train(100)
      begun = time.perf_counter()
      trainer.train(300)
      seconds[rows] = (time.perf_counter() - begun) / 200
    weights = sum(v.shape.num_elements() or 1 for v in _tensors(task))
    checkpointer = tftrain.Checkpointer(directory, trainer)
    begun = time.perf_counter()
    checkpointer.save()
    stall = time.perf_counter() - begun
    checkpointer.wait()
  batches = iter(tftrain.Arrays(workload.arrays(), 256).dataset(0))
  begun = time.perf_counter()
  for _ in range(300):
    next(batches)
  input_rows = 300 * 256 / (time.perf_counter() - begun)
  row = (seconds[256] - seconds[32]) / (256 - 32)
  return {
    'row': row,
    'fixed': max(seconds[32] - 32 * row, 0.0),
    'gradient_mb': weights * 4 / 1e6,
    'input_rows': input_rows,
    'stall': stall,
    **_measured_network(),
  }


def _tensors(task: Any) -> list[Any]:
  return [variable.value for variable in task.model.trainable_variables]


def _measured_network() -> dict[str, float]:
  from tftrain.distribute import cluster_resolver
  from tftrain.distribute import local_launcher

  addresses = tuple(local_launcher.free_addresses(2))
  workers = []
  for task in range(2):
    cluster = cluster_resolver.Cluster(addresses, task, 'benchmark')
    workers.append(
      subprocess.Popen(
        [sys.executable, __file__, '--worker'],
        env={**os.environ, 'TF_CONFIG': cluster.tf_config()},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
      )
    )
  texts = [worker.communicate(timeout=120)[0] for worker in workers]
  return dict(json.loads(texts[0].splitlines()[-1]))


def time_all_reduce() -> None:
  """Runs one of two workers; prints latency and megabytes per second."""
  import tensorflow as tf

  from tftrain.distribute import strategy as strategy_lib

  strategy = strategy_lib.make_strategy('multi_worker_mirrored')

  @tf.function
  def run(values: tf.Tensor, n: tf.Tensor) -> tf.Tensor:
    def add() -> tf.Tensor:
      context = tf.distribute.get_replica_context()
      return context.all_reduce('SUM', tf.identity(values))

    for _ in tf.range(n):
      values = strategy.run(add) / 2
    return values

  def seconds(size: int, n: int) -> float:
    values = tf.ones([size])
    run(values, tf.constant(1))
    begun = time.perf_counter()
    run(values, tf.constant(n)).numpy()
    return (time.perf_counter() - begun) / n

  small, large = seconds(1, 500), seconds(1 << 22, 20)
  megabytes = 4 * (1 << 22) / 1e6
  # A ring of two sends two messages, each with half of the values.
  print(
    json.dumps(
      {'latency': small / 2, 'network_mb': megabytes / (large - small)}
    )
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--measure', action='store_true', help='measure here')
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
  parser.add_argument('--hosts', type=int, default=256, help='end of the table')
  for field in dataclasses.fields(Run):
    parser.add_argument(
      f'--{field.name}', type=float, default=field.default, help='see Run'
    )
  given = vars(parser.parse_args())
  worker, measured = given.pop('worker'), given.pop('measure')
  if worker:
    time_all_reduce()
  elif measured:
    for name, value in measure().items():
      print(f'--{name}={value:.4g}')
  else:
    hosts = given.pop('hosts')
    print('\n'.join(table(Run(**given), hosts)))


if __name__ == '__main__':
  main()
