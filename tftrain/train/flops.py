"""FLOPs: counts the floating-point operations of a compiled step.

Counts matrix products and convolutions, 2 for each multiply-add, as is usual
for model FLOPs utilization (Chowdhery et al. 2022, "PaLM", appendix B). The
other operations of a step are negligible.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
import re
from typing import Any

import tensorflow as tf

# Part of a device name -> peak teraFLOPs per second of matrix products in (half
# precision, float32), without sparsity. float32 is TF32 where available, as in
# TensorFlow. From NVIDIA's data sheets.
_PEAKS = {
  'B200': (2250, 1125),
  'H200': (989, 494),
  'H100 PCIe': (756, 378),
  'H100': (989, 494),
  'L40S': (362, 183),
  'L4': (121, 60),
  'A100': (312, 156),
  'A10': (125, 62.5),
  'V100': (125, 15.7),
  'T4': (65, 8.1),
}

_BATCH_MATMULS = ('BatchMatMul', 'BatchMatMulV2', 'BatchMatMulV3')
_CALLS = ('PartitionedCall', 'StatefulPartitionedCall')
_LOOPS = ('While', 'StatelessWhile')
_BRANCHES = ('If', 'StatelessIf', 'Case', 'StatelessCase')

# Operation -> (source of the filter, source of the larger result): the index of
# an input, or -1 for the output.
_CONVOLUTIONS = {
  'Conv2D': (1, -1),
  'Conv2DBackpropInput': (1, 2),
  'Conv2DBackpropFilter': (-1, 2),
  'Conv3D': (1, -1),
  'Conv3DBackpropInputV2': (1, 2),
  'Conv3DBackpropFilterV2': (-1, 2),
  'DepthwiseConv2dNative': (1, -1),
  'DepthwiseConv2dNativeBackpropInput': (1, 2),
  'DepthwiseConv2dNativeBackpropFilter': (-1, 2),
}


def peak(*, half: bool) -> float | None:
  """Returns the peak FLOPs per second of a device.

  None on a CPU, and on GPUs that are not listed here.

  Args:
    half: Whether for half precision instead of float32.
  """
  for device in tf.config.get_visible_devices('GPU')[:1]:
    details = tf.config.experimental.get_device_details(device)
    name = details.get('device_name', '')
    for part, (halves, singles) in _PEAKS.items():
      if re.search(rf'\b{part}\b', name):
        return 1e12 * (halves if half else singles)
  return None


def of_step(definition: Any, batch: int = 1) -> int:
  """Returns the FLOPs of one iteration of a graph's loop.

  A graph without a loop counts whole. A nested loop counts once per iteration
  if their number is constant, else once. Of a conditional, the most expensive
  branch counts.

  Args:
    definition: GraphDef with the shapes of its nodes.
    batch: Size to assume for each unknown dimension.
  """
  functions = {f.signature.name: f for f in definition.library.function}
  return _Count(functions, batch).of_graph(definition)


class _Count:
  """A FLOP counter that memoizes the count of each function."""

  def __init__(self, functions: Mapping[str, Any], batch: int):
    self._functions = functions
    self._batch = batch
    self._known: dict[str, int] = {}

  def of_graph(self, definition: Any) -> int:
    return self._of_nodes(_Nodes(definition.node))

  def of_function(self, name: str) -> int:
    if name not in self._known:
      function = self._functions.get(name)
      self._known[name] = 0
      if function is not None:
        self._known[name] = self._of_nodes(_Nodes.of_function(function))
    return self._known[name]

  def _of_nodes(self, nodes: '_Nodes') -> int:
    return sum(self._of_node(node, nodes) for node in nodes.all)

  def _of_node(self, node: Any, nodes: '_Nodes') -> int:
    if node.op in _CALLS:
      return self.of_function(node.attr['f'].func.name)
    if node.op in _LOOPS:
      turns = self._turns(node, nodes)
      return turns * self.of_function(node.attr['body'].func.name)
    if node.op in _BRANCHES:
      branches = [node.attr['then_branch'].func, node.attr['else_branch'].func]
      branches += node.attr['branches'].list.func
      return max(self.of_function(branch.name) for branch in branches)
    return self._of_product(node, nodes)

  def _of_product(self, node: Any, nodes: '_Nodes') -> int:
    size = functools.partial(self._size, node, nodes)
    if node.op == 'MatMul':
      # One size is unknown if the gradient of a loop pops it off a stack.
      left = size(0)[0 if node.attr['transpose_a'].b else 1 :][:1]
      right = size(1)[1 if node.attr['transpose_b'].b else 0 :][:1]
      shared = left or right
    elif node.op in _BATCH_MATMULS:
      *_, rows, columns = size(0) or (0, 0)
      shared = [rows if node.attr['adj_x'].b else columns]
    elif node.op == 'Einsum':
      shared = _summed(node, [size(i) for i in range(len(node.input))])
    elif node.op in _CONVOLUTIONS:
      filters, larger = _CONVOLUTIONS[node.op]
      *shared, _ = size(filters) or (0,)
      if node.op.startswith('Depthwise'):
        shared = shared[:-1]
      return 2 * math.prod(size(larger)) * math.prod(shared)
    else:
      return 0
    return 2 * math.prod(size(-1)) * math.prod(shared)

  def _size(self, node: Any, nodes: '_Nodes', index: int) -> list[int]:
    """Returns the shape of input `index`, or of the output for -1."""
    shape = nodes.shape_of(node, index)
    return [self._batch if size < 0 else size for size in shape]

  def _turns(self, node: Any, nodes: '_Nodes') -> int:
    """Returns the number of iterations of a loop, 1 if unknown.

    The number is known if the condition compares with a constant or with a
    constant input of the loop.
    """
    condition = self._functions.get(node.attr['cond'].func.name)
    if condition is None:
      return 1
    inside = _Nodes.of_function(condition)
    found = []
    for less in inside.all:
      if less.op == 'Less':
        ends = [
          inside.constant(name) if constant is None else constant
          for name in less.input
          for constant in [self._given(name, inside, node, nodes)]
        ]
        if None not in ends:
          found.append(max(int(ends[1]) - int(ends[0]), 1))
    return min(found, default=1)

  def _given(
    self, name: str, inside: '_Nodes', node: Any, nodes: '_Nodes'
  ) -> Any:
    """Returns the constant input of a loop for an argument of its condition."""
    index = inside.arguments.get(name.split(':')[0])
    if index is None:
      return None
    source = nodes.source(node.input[index])
    if source is not None and source.op in _LOOPS and source is not node:
      return self._turns(source, nodes)  # the backward loop of a gradient
    return nodes.constant(node.input[index])


class _Nodes:
  """The nodes of a graph or function, by name."""

  def __init__(
    self,
    nodes: Sequence[Any],
    arguments: Sequence[str] = (),
    shapes: Mapping[int, Any] | None = None,
  ):
    self.all: Sequence[Any] = nodes
    self.arguments = {name: index for index, name in enumerate(arguments)}
    self._by_name = {node.name: node for node in nodes}
    self._shapes = shapes or {}

  @classmethod
  def of_function(cls, function: Any) -> '_Nodes':
    names = [argument.name for argument in function.signature.input_arg]
    nodes = cls(function.node_def, names, function.arg_attr)
    nodes._keep([*function.ret.values(), *function.control_ret.values()])
    return nodes

  def _keep(self, results: Sequence[str]) -> None:
    """Drops nodes that no result needs, as TensorFlow prunes them."""
    needed: set[str] = set()
    waiting = list(results)
    while waiting:
      name = waiting.pop().lstrip('^').split(':')[0]
      if name in self._by_name and name not in needed:
        needed.add(name)
        waiting += self._by_name[name].input
    self.all = [node for node in self.all if node.name in needed]

  def shape_of(self, node: Any, index: int) -> list[int]:
    """Returns the shape of input `index`, or of the output for -1.

    A size of -1 is unknown.
    """
    if index < 0:
      return _output_shape(node, 0)
    name, *rest = node.input[index].split(':')
    if name in self.arguments:
      given = self._shapes.get(self.arguments[name])
      return [] if given is None else _output_shape(given, 0)
    source = self._by_name.get(name)
    which = int(rest[-1]) if rest else 0
    return [] if source is None else _output_shape(source, which)

  def source(self, name: str) -> Any:
    """Returns the node that makes a value; None for an argument."""
    node = self._by_name.get(name.split(':')[0])
    while node is not None and node.op in ('Identity', 'Cast'):
      node = self._by_name.get(node.input[0].split(':')[0])
    return node

  def constant(self, name: str) -> Any:
    """Returns the value of an integer constant; None for other nodes."""
    node = self.source(name)
    if node is None or node.op != 'Const':
      return None
    value = tf.make_ndarray(node.attr['value'].tensor)
    return value if value.ndim == 0 and value.dtype.kind in 'iu' else None


def _output_shape(node: Any, which: int) -> list[int]:
  shapes = node.attr['_output_shapes'].list.shape
  if which >= len(shapes):
    return []
  return [dimension.size for dimension in shapes[which].dim]


def _summed(node: Any, sizes: Sequence[Sequence[int]]) -> list[int]:
  """Returns the sizes of the dimensions over which an Einsum sums."""
  equation = node.attr['equation'].s.decode().replace(' ', '')
  operands, _, result = equation.partition('->')
  known: dict[str, int] = {}
  for letters, size in zip(operands.split(','), sizes, strict=False):
    front, _, back = letters.partition('...')
    known.update(zip(front, size, strict=False))
    known.update(zip(reversed(back), reversed(size), strict=False))
  return [known[letter] for letter in known if letter not in result]
