"""Multi-worker coordination: the chief worker leads, the others follow.

All workers build the same Trainer. Only the chief runs the host loop: it alone
decides when a block of steps ends, which Actions get a Report and which files
are written. A method that contains a collective is marked `together`; the
chief sends the method's name to the other workers before the call. No decision
is made twice, so neither a clock nor an Action can deadlock two workers.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import re
import time
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.distribute import row_sharding
from tftrain.platform import hashing

# Kinds of messages: the first number of each message.
_LEAVE, _END, _CALL, _SHARE, _FACTS = 1, 2, 3, 4, 5
_MESSAGE = 8  # numbers in a message
_BLOCK = 1 << 18  # numbers in a block of a state, 2 MB

# Timeout of the chief in a collective, in seconds. The other workers have no
# timeout, as they wait for the next message of the chief.
_SECONDS = 600.0

# Grace period in seconds during which the chief stays alive, so that peers can
# report which worker failed.
_LINGER = 3.0

_GONE = re.compile(
  r'Collective ops is aborted|/job:worker/replica:0/task:\d+|[Hh]eartbeat|'
  r'[Cc]oordination service|Socket closed|failed to connect'
)
_TASK = re.compile(r'/job:worker/(?:replica:0/)?task:(\d+)')


class SingleWorker:
  """The coordination of a single process: there are no peers."""

  leads = True
  count = 1
  # The rows of a global batch that belong to this worker, if it has peers.
  rows: row_sharding.Share | None = None

  def joined(self, member: Any, *methods: Callable[..., Any]) -> 'SingleWorker':
    """Registers the methods of an object that all workers run; returns self.

    All workers register their members in the same order.

    Args:
      member: The object; `share` broadcasts its state.
      *methods: Bound methods of it, which take only numbers.
    """
    del member, methods
    return self

  def calling(
    self, method: Callable[..., Any], *args: int
  ) -> contextlib.AbstractContextManager[None]:
    """Makes the other workers call a registered method, as the body does.

    >>> with self.workers.calling(self._evaluate):
    ...   return self._evaluate()
    """
    del method, args
    return contextlib.nullcontext()

  def asked(self, agreed: tf.Variable) -> tf.Variable:
    """Returns the variable by which this process votes for `agreed`."""
    return agreed

  def agree(self, agreed: tf.Variable, ended: tf.Tensor) -> tf.Tensor:
    """Sets `agreed` to the maximum of all workers' votes; traceable.

    Returns:
      Whether `ended` is true on any worker, a bool scalar.
    """
    del agreed
    return ended

  def share(self, member: Any) -> None:
    """Broadcasts the chief's state of a member to all workers."""

  def check_same(self, facts: Mapping[str, Any]) -> None:
    """Checks that all workers have the same facts.

    Raises:
      StrategyError: If `facts` differ between workers; the error names the
        first worker that differs from the chief.
    """

  @contextlib.contextmanager
  def leading(self, *, last: bool = True) -> Iterator[list[int]]:
    """Runs the body on the chief while the other workers follow it.

    The other workers enter the body after the chief has left it.

    Args:
      last: Whether this is the last use of the workers.

    Yields:
      A list with the exit code: the chief sets it, the other workers read it.

    Raises:
      WorkerError: If the chief failed.
    """
    del last
    yield [0]


SINGLE_WORKER = SingleWorker()


def of(strategy: tf.distribute.Strategy) -> SingleWorker:
  """Returns the workers of a strategy, the same object at each call."""
  if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
    return SINGLE_WORKER
  if not hasattr(strategy, '_tftrain_workers'):
    strategy._tftrain_workers = MultiWorker(strategy)
  return strategy._tftrain_workers  # type: ignore[no-any-return]


class MultiWorker(SingleWorker):
  """The processes of a MultiWorkerMirroredStrategy.

  Args:
    strategy: The strategy, already created on all workers.
  """

  def __init__(self, strategy: tf.distribute.Strategy):
    resolver = strategy.cluster_resolver
    self._strategy = strategy
    self._addresses = list(resolver.cluster_spec().as_dict()['worker'])
    self._task = int(resolver.task_id)
    self.leads = self._task == 0
    self.count = len(self._addresses)
    local = len(strategy.extended.worker_devices)
    self.rows = row_sharding.Share(
      self._task * local, (self._task + 1) * local, self.count * local
    )
    self._members: list[Any] = []
    self._methods: list[Callable[..., Any]] = []
    self._asked: dict[Any, tf.Variable] = {}
    self._busy = False
    self._broken = False
    self._sum = tf.function(self._added, autograph=False)

  def joined(self, member: Any, *methods: Callable[..., Any]) -> 'MultiWorker':
    self._members.append(member)
    self._methods += methods
    return self

  # Agreement in a compiled loop.

  def asked(self, agreed: tf.Variable) -> tf.Variable:
    if agreed.ref() not in self._asked:
      with tf.device('CPU:0'):
        self._asked[agreed.ref()] = tf.Variable(agreed, trainable=False)
    return self._asked[agreed.ref()]

  def agree(self, agreed: tf.Variable, ended: tf.Tensor) -> tf.Tensor:
    asked = self.asked(agreed).read_value()
    votes = tf.stack([asked >= 1, asked >= 2, ended])
    heard = self._added(tf.cast(votes, tf.int64)) > 0
    most = tf.reduce_sum(tf.cast(heard[:2], agreed.dtype))
    agreed.assign(most, read_value=False)
    return heard[2]

  def _added(self, numbers: tf.Tensor) -> tf.Tensor:
    """Sums vectors of int64 over all workers."""

    def add() -> tf.Tensor:
      context = tf.distribute.get_replica_context()
      return context.all_reduce(
        tf.distribute.ReduceOp.SUM,
        tf.identity(numbers),
        options=tf.distribute.experimental.CommunicationOptions(
          timeout_seconds=_SECONDS if self.leads else None
        ),
      )

    total = self._strategy.experimental_local_results(self._strategy.run(add))
    # Each local replica has added the numbers of this worker.
    return total[0] // len(total)

  # Messages between hosts.

  def _exchange(self, numbers: Any) -> np.ndarray:
    """Sums vectors of equal length over the hosts."""
    if self._broken:
      raise errors.WorkerError('the workers do not hear each other any more')
    with self._explained():
      total: np.ndarray = self._sum(tf.constant(numbers, tf.int64)).numpy()
    return total

  def _send(self, *numbers: int) -> None:
    # A constant length, so that the collective is traced once.
    message = np.zeros([self.count * _MESSAGE], np.int64)
    message[: len(numbers)] = numbers
    self._exchange(message)

  def _receive(self) -> list[int]:
    nothing = np.zeros([self.count * _MESSAGE], np.int64)
    return self._exchange(nothing)[:_MESSAGE].tolist()  # type: ignore[no-any-return]

  def _part(self) -> None:
    """Waits until all workers have received the last message.

    Exiting immediately could drop the in-flight message.
    """
    with contextlib.suppress(errors.WorkerError):
      self._receive()

  @contextlib.contextmanager
  def calling(self, method: Callable[..., Any], *args: int) -> Iterator[None]:
    if self._busy:  # nested in a method that all run
      yield
      return
    message = [_CALL, self._methods.index(method), len(args), *args]
    if self.leads:
      self._send(*message)
    else:
      self._expect(message)
    with self._working():
      yield

  @contextlib.contextmanager
  def _working(self) -> Iterator[None]:
    self._busy = True
    try:
      with self._explained():
        yield
    except errors.NonFiniteError:  # raised on all workers, after the step
      raise
    except BaseException:
      self._broken = True  # the others may wait for this worker for ever
      raise
    finally:
      self._busy = False

  def _place(self, member: Any) -> int:
    return next(i for i, m in enumerate(self._members) if m is member)

  def _expect(self, message: list[int]) -> None:
    heard = self._receive()[: len(message)]
    if heard != message:
      raise errors.WorkerError(
        f'worker {self._task} does something else than worker 0 (it says '
        f'{heard}, not {message}); run the same program on all'
      )

  def _follow(self, *, last: bool) -> int:
    """Follows the chief until it stops leading; returns its exit code."""
    while True:
      kind, first, count, *numbers = self._receive()
      if kind == _END:
        self._part()
      if kind == _END or (kind == _LEAVE and not last):
        if count and kind == _END:
          raise errors.WorkerError(
            f'worker 0 ({self._addresses[0]}) failed; see its log'
          )
        return first
      if kind == _SHARE:
        self._take(self._members[first])
      elif kind == _CALL:
        # The chief handles an error of a step that is not finite.
        with contextlib.suppress(errors.NonFiniteError), self._working():
          self._methods[first](*numbers[:count])

  @contextlib.contextmanager
  def leading(self, *, last: bool = True) -> Iterator[list[int]]:
    code = [0]
    if not self.leads:
      code[0] = self._follow(last=last)
      yield code
      return
    failed = True
    try:
      yield code
      failed = False
    finally:
      if not self._broken:
        self._send(_END if last else _LEAVE, code[0], failed)
        if last:
          self._part()

  # Broadcast of the chief's state.

  def share(self, member: Any) -> None:
    if self.leads:
      state = member.read_state()
      self._send(_SHARE, self._place(member))
      self._give(_serialize(state, member.facts()))
    else:
      self._expect([_SHARE, self._place(member)])
      self._take(member)

  def _give(self, content: bytes) -> None:
    self._send(len(content))
    for begin in range(0, len(content), 8 * _BLOCK):
      part = content[begin : begin + 8 * _BLOCK].ljust(8 * _BLOCK, b'\0')
      self._exchange(np.frombuffer(part, np.int64))

  def _take(self, member: Any) -> None:
    size = self._receive()[0]
    nothing = np.zeros([_BLOCK], np.int64)
    blocks = -(-size // (8 * _BLOCK))
    parts = [self._exchange(nothing).tobytes() for _ in range(blocks)]
    state, facts = _deserialize(b''.join(parts)[:size])
    member.write_state(state)
    member.write_facts(facts)

  def check_same(self, facts: Mapping[str, Any]) -> None:
    names = list(facts)
    most = _MESSAGE - 1  # facts in a message
    for first in range(0, len(names), most):
      self._check_same(
        {name: facts[name] for name in names[first : first + most]}
      )

  def _check_same(self, facts: Mapping[str, Any]) -> None:
    mine = [_FACTS, *(_digest_bits(value) for value in facts.values())]
    table = np.zeros([self.count, len(mine)], np.int64)
    table[self._task] = mine
    flat = np.zeros([self.count * _MESSAGE], np.int64)
    flat[: table.size] = table.reshape(-1)
    rows = self._exchange(flat)[: table.size].reshape(table.shape)
    for task, row in enumerate(rows):
      wrong = [
        name
        for name, here, chief in zip(facts, row[1:], rows[0][1:], strict=True)
        if here != chief
      ]
      if wrong:
        self._part()
        raise errors.StrategyError(
          f'worker {task} ({self._addresses[task]}) differs from worker 0 in '
          f'{", ".join(wrong)}; start all with the same command and code'
        )

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Converts TensorFlow's errors about a lost worker to a WorkerError."""
    try:
      yield
    except (tf.errors.OpError, RuntimeError) as error:
      text = str(error)
      if not _GONE.search(text):
        raise
      self._broken = True
      if self.leads and self.count > 2:  # it relays the failure to the others
        time.sleep(_LINGER)
      others = [int(n) for n in _TASK.findall(text) if int(n) != self._task]
      if not others and self.count == 2:
        others = [1 - self._task]
      who = 'another worker'
      if others:
        who = f'worker {others[0]} ({self._addresses[others[0]]})'
      raise errors.WorkerError(
        f'{who} is gone: see its log. Start the same command on all workers '
        'again; they go on from the last checkpoint'
      ) from error


def _digest_bits(value: Any) -> int:
  """Returns 48 bits of a digest: they fit into an int64."""
  return int(hashing.value_digest(value)[:12], 16)


def _serialize(state: Mapping[str, Any], facts: Mapping[str, Any]) -> bytes:
  """Serializes a state and its facts; `_deserialize` is the inverse."""
  parts = {
    name: tf.io.serialize_tensor(value).numpy() for name, value in state.items()
  }
  head = {
    'facts': facts,
    'values': [
      [name, tf.convert_to_tensor(state[name]).dtype.name, len(part)]
      for name, part in parts.items()
    ],
  }
  text = json.dumps(head).encode()
  return len(text).to_bytes(8, 'big') + text + b''.join(parts.values())


def _deserialize(content: bytes) -> tuple[dict[str, Any], Any]:
  end = 8 + int.from_bytes(content[:8], 'big')
  head = json.loads(content[8:end])
  state = {}
  for name, dtype, size in head['values']:
    part = content[end : end + size]
    state[name] = tf.io.parse_tensor(part, tf.as_dtype(dtype)).numpy()
    end += size
  return state, head['facts']
