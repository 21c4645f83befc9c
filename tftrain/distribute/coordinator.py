"""Several processes that train one model: the chief leads, the others follow.

All of them build the same Trainer. Only the chief runs the host's loop: it
alone decides when a block of steps ends, who hears of it and what is written.
What has a collective in it is a method marked `together`; the chief says its
name to the others before it calls it. So nothing is decided twice, and neither
a clock nor an Action can make two workers wait for each other.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import functools
import json
import re
import time
from typing import Any, Concatenate, ParamSpec, TypeVar
import zlib

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.distribute import row_sharding
from tftrain.platform import hashing

_P = ParamSpec('_P')
_T = TypeVar('_T')

# What a message may begin with.
_LEAVE, _END, _CALL, _SHARE, _FACTS = 1, 2, 3, 4, 5
_MESSAGE = 8  # numbers in a message
_BLOCK = 1 << 18  # numbers in a block of a state, 2 MB

# How long the chief waits for the others to listen; they may wait for it.
_SECONDS = 600.0

# How long the chief outlives another worker, so that all can learn whose.
_LINGER = 3.0

_GONE = re.compile(
  r'Collective ops is aborted|/job:worker/replica:0/task:\d+|[Hh]eartbeat|'
  r'[Cc]oordination service|Socket closed|failed to connect'
)
_TASK = re.compile(r'/job:worker/(?:replica:0/)?task:(\d+)')


def together(
  method: Callable[Concatenate[Any, _P], _T],
) -> Callable[Concatenate[Any, _P], _T]:
  """Marks a method that all workers run at the same time.

  It takes numbers only, and belongs to a member of `self.workers`.
  """

  @functools.wraps(method)
  def run(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    assert not kwargs
    return self.workers.run(method, self, args)  # type: ignore[no-any-return]

  return run


class SingleWorker:
  """One process: there is nobody to tell anything."""

  leads = True
  count = 1
  # Whose rows of a batch are this worker's, where there are several.
  rows: row_sharding.Share | None = None

  def joined(self, member: Any) -> 'SingleWorker':
    """Makes a member known whose methods are marked; the same order on all."""
    del member
    return self

  def run(self, method: Callable[..., Any], member: Any, args: Any) -> Any:
    return method(member, *args)

  def asked(self, agreed: tf.Variable) -> tf.Variable:
    """What this process sets to ask for what `agreed` is to say."""
    return agreed

  def agree(self, agreed: tf.Variable, ended: tf.Tensor) -> tf.Tensor:
    """Sets `agreed` to the most that any worker asks for; traceable.

    Returns:
      Whether `ended` holds for any.
    """
    del agreed
    return ended

  def share(self, member: Any) -> None:
    """Gives the chief's state of a member to all."""

  def check_same(self, facts: Mapping[str, Any]) -> None:
    """Raises StrategyError, naming who, if the workers' facts differ."""

  @contextlib.contextmanager
  def leading(self, *, last: bool = True) -> Iterator[list[int]]:
    """Surrounds what the chief alone does: the others first follow it.

    Args:
      last: Whether nothing comes after it.

    Yields:
      A list of the exit code: the chief sets it, the others read it.

    Raises:
      WorkerError: The chief failed.
    """
    del last
    yield [0]


SINGLE_WORKER = SingleWorker()


def of(strategy: tf.distribute.Strategy) -> SingleWorker:
  """The workers of a strategy, one object for all who ask."""
  if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
    return SINGLE_WORKER
  if not hasattr(strategy, '_tftrain_workers'):
    strategy._tftrain_workers = MultiWorker(strategy)
  return strategy._tftrain_workers  # type: ignore[no-any-return]


class MultiWorker(SingleWorker):
  """The processes of a MultiWorkerMirroredStrategy.

  Args:
    strategy: Made already, on all of them.
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
    self._asked: dict[Any, tf.Variable] = {}
    self._busy = False
    self._broken = False
    self._sum = tf.function(self._added, autograph=False)

  def joined(self, member: Any) -> 'MultiWorker':
    self._members.append(member)
    return self

  # What a compiled loop agrees upon.

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
    """Adds up vectors of int64 over all workers."""

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
    # Each local replica has added what this worker said.
    return total[0] // len(total)

  # What hosts tell each other.

  def _exchange(self, numbers: Any) -> np.ndarray:
    """Adds up vectors of the hosts, each of the same length."""
    if self._broken:
      raise errors.WorkerError('the workers do not hear each other any more')
    with self._explained():
      total: np.ndarray = self._sum(tf.constant(numbers, tf.int64)).numpy()
    return total

  def _say(self, *numbers: int) -> None:
    # Always of one length, so that it is compiled once.
    message = np.zeros([self.count * _MESSAGE], np.int64)
    message[: len(numbers)] = numbers
    self._exchange(message)

  def _hear(self) -> list[int]:
    nothing = np.zeros([self.count * _MESSAGE], np.int64)
    return self._exchange(nothing)[:_MESSAGE].tolist()  # type: ignore[no-any-return]

  def _part(self) -> None:
    """Ends when all have heard what was said last.

    A process that ends at once may take that word with it.
    """
    with contextlib.suppress(errors.WorkerError):
      self._hear()

  def run(self, method: Callable[..., Any], member: Any, args: Any) -> Any:
    if self._busy:  # a part of what all run
      return method(member, *args)
    message = [_CALL, self._place(member), _number(method), len(args), *args]
    if self.leads:
      self._say(*message)
    else:
      self._expect(message)
    return self._work(method, member, args)

  def _work(self, method: Callable[..., Any], member: Any, args: Any) -> Any:
    self._busy = True
    try:
      with self._explained():
        return method(member, *args)
    except errors.NonFiniteError:  # found by all, after the step
      raise
    except BaseException:
      self._broken = True  # the others may wait for this worker for ever
      raise
    finally:
      self._busy = False

  def _place(self, member: Any) -> int:
    return next(i for i, m in enumerate(self._members) if m is member)

  def _expect(self, message: list[int]) -> None:
    heard = self._hear()[: len(message)]
    if heard != message:
      raise errors.WorkerError(
        f'worker {self._task} does something else than worker 0 (it says '
        f'{heard}, not {message}); run the same program on all'
      )

  def _follow(self, *, last: bool) -> int:
    """Does what the chief says until it stops leading; its exit code."""
    while True:
      kind, first, name, count, *numbers = self._hear()
      if kind == _END:
        self._part()
      if kind == _END or (kind == _LEAVE and not last):
        if name and kind == _END:
          raise errors.WorkerError(
            f'worker 0 ({self._addresses[0]}) failed; see its log'
          )
        return first
      if kind == _SHARE:
        self._take(self._members[first])
      elif kind == _CALL:
        member = self._members[first]
        method = _marked(member, name)
        with contextlib.suppress(errors.NonFiniteError):  # the chief's to see
          self._work(method, member, numbers[:count])

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
        self._say(_END if last else _LEAVE, code[0], failed)
        if last:
          self._part()

  # The chief's state, given to all.

  def share(self, member: Any) -> None:
    if self.leads:
      state = member.read_state()
      self._say(_SHARE, self._place(member))
      self._give(_packed(state, member.facts()))
    else:
      self._expect([_SHARE, self._place(member)])
      self._take(member)

  def _give(self, content: bytes) -> None:
    self._say(len(content))
    for begin in range(0, len(content), 8 * _BLOCK):
      part = content[begin : begin + 8 * _BLOCK].ljust(8 * _BLOCK, b'\0')
      self._exchange(np.frombuffer(part, np.int64))

  def _take(self, member: Any) -> None:
    size = self._hear()[0]
    nothing = np.zeros([_BLOCK], np.int64)
    blocks = -(-size // (8 * _BLOCK))
    parts = [self._exchange(nothing).tobytes() for _ in range(blocks)]
    state, facts = _unpacked(b''.join(parts)[:size])
    member.write_state(state)
    member.write_facts(facts)

  def check_same(self, facts: Mapping[str, Any]) -> None:
    mine = [_FACTS, *(_digest(value) for value in facts.values())]
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
    """Makes one line of what TensorFlow says when a worker is gone."""
    try:
      yield
    except (tf.errors.OpError, RuntimeError) as error:
      text = str(error)
      if not _GONE.search(text):
        raise
      self._broken = True
      if self.leads and self.count > 2:  # the others hear of it through this
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


def _number(method: Callable[..., Any]) -> int:
  return zlib.crc32(method.__qualname__.encode())


def _marked(member: Any, name: int) -> Callable[..., Any]:
  """The method of a member that a message means."""
  for value in vars(type(member)).values():
    method: Any = getattr(value, '__wrapped__', None)
    if method is not None and _number(method) == name:
      return method  # type: ignore[no-any-return]
  raise errors.WorkerError(
    f'{type(member).__name__} has nothing that the chief asks for; run the '
    'same code on all workers'
  )


def _digest(value: Any) -> int:
  """Returns 48 bits of a digest: they fit into an int64."""
  return int(hashing.value_digest(value)[:12], 16)


def _packed(state: Mapping[str, Any], facts: Mapping[str, Any]) -> bytes:
  """A state and JSON as bytes; see `_unpacked`."""
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


def _unpacked(content: bytes) -> tuple[dict[str, Any], Any]:
  end = 8 + int.from_bytes(content[:8], 'big')
  head = json.loads(content[8:end])
  state = {}
  for name, dtype, size in head['values']:
    part = content[end : end + size]
    state[name] = tf.io.parse_tensor(part, tf.as_dtype(dtype)).numpy()
    end += size
  return state, head['facts']
