"""The laws of docs/design.md, kept by reading the source.

Each law has an example that breaks it, so that the law itself is tested.
"""

import ast
from collections.abc import Iterator
import dataclasses
import functools
import os
import shutil
import subprocess
import sys

import pytest

from tests.support import paths

_PACKAGE = paths.ROOT / 'tftrain'

# A room imports itself and the rooms before it: that rules out circles too.
ROOMS = (
  'errors platform distribute interop data.sources data step task report '
  'summary checkpoint export train evaluation testing actions experiment debug '
  'config sweep launch __main__'
).split()
_DOOR = '__init__'

_WITHOUT_TENSORFLOW = (
  'errors',
  'platform',
  'report',
  'sweep',
  'debug.compare_runs',
  'distribute.cluster_resolver',
  'distribute.local_launcher',
  'distribute._rendezvous',
  'experiment.run_record',
  'launch',
)
_HEAVY = ('launch._describe_sweep', 'platform.process_memory')
_GIN = ('config', 'sweep._sweep_file')
_FLAGS = ('launch.command', 'launch.flags')
_LAZY = (
  'launch.command',
  'data.sources.third_party',
  'export.converters',
  'sweep._optuna_sampler',
  'sweep.report_files',
  'debug.lr_finder',
)
_COMPILES = (
  'train.retracing',
  'train.inner_loop',
  'train.block_loop',
  'evaluation._per_example',
  'export.signature',
  'export.converters',
  'train.metrics',
  'step.gradients',
  'step.step_runner',
  'distribute.coordinator',
)
_WRITES = (
  'platform._filesystem',
  'platform.files',
  'platform.lock',
  'export.isolated_process',  # to a temporary directory
)
_LOADS_MODELS = ('export.isolated_process', 'export.converters')

_MAX_LINES = 600
_MAX_FUNCTION_LINES = 60


@dataclasses.dataclass(frozen=True)
class _Module:
  """One file; `inputs.arrays` is tftrain/inputs/arrays.py."""

  name: str
  source: str

  @functools.cached_property
  def tree(self) -> ast.Module:
    return ast.parse(self.source)

  @functools.cached_property
  def nodes(self) -> list[ast.AST]:
    return list(ast.walk(self.tree))

  def calls(self) -> Iterator[tuple[str, ast.Call]]:
    """What is called, as written (`os.path.join`), and the call."""
    for node in self.nodes:
      if isinstance(node, ast.Call):
        yield ast.unparse(node.func), node

  def imports(self) -> Iterator[tuple[str, ast.stmt]]:
    """What is imported, in full (`tftrain.errors`), and the statement."""
    for node in self.nodes:
      if isinstance(node, ast.Import):
        for alias in node.names:
          yield alias.name, node
      elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
          yield f'{"." * node.level}{node.module or ""}.{alias.name}', node

  def internal_imports(self) -> Iterator[str]:
    """Yields the modules of ours that it imports; a face counts as the door."""
    for name, _ in self.imports():
      package, _, rest = name.partition('.')
      if package == 'tftrain':
        while rest and not _is_module(rest):  # a name, not a module
          rest = rest.rpartition('.')[0]
        yield rest or _DOOR


def _is_module(name: str) -> bool:
  return (_PACKAGE / (name.replace('.', '/') + '.py')).is_file()


def _room(name: str) -> str:
  """Returns the room of a module; one of no room stands for itself."""
  return name if name in ROOMS else name.rpartition('.')[0]


def _is_listed(name: str, names: tuple[str, ...]) -> bool:
  """Returns whether a list holds the module, or its room."""
  return name in names or _room(name) in names


@functools.cache
def _modules() -> list[_Module]:
  found = []
  for path in sorted(_PACKAGE.rglob('*.py')):
    parts = path.relative_to(_PACKAGE).with_suffix('').parts
    if len(parts) > 1 and parts[-1] == '__init__':
      continue
    found.append(_Module('.'.join(parts), path.read_text(encoding='utf-8')))
  return found


# The laws: each yields what breaks it.


def _imports_go_down(module: _Module) -> Iterator[str]:
  room = _room(module.name)
  if module.name == _DOOR:
    return
  allowed = ROOMS[: ROOMS.index(room) + 1]
  for name in module.internal_imports():
    if name == _DOOR or _room(name) not in allowed:
      yield f'imports {name}'


def _private_modules_stay_in_their_room(module: _Module) -> Iterator[str]:
  for name in module.internal_imports():
    private = name.rpartition('.')[2].startswith('_') and name != _DOOR
    if private and _room(name) != _room(module.name):
      yield f'imports {name}'


def _no_relative_import(module: _Module) -> Iterator[str]:
  for name, _ in module.imports():
    if name.startswith('.'):
      yield f'imports {name}'


def _no_private_tensorflow(module: _Module) -> Iterator[str]:
  for name, _ in module.imports():
    if f'{name}.'.startswith('tensorflow.python.'):
      yield f'imports {name}'


def _no_lazy_import(module: _Module) -> Iterator[str]:
  lazy = set()
  for function in _functions(module.tree):
    for node in ast.walk(function):
      if isinstance(node, ast.Import | ast.ImportFrom):
        lazy.add(function.name)
  if len(lazy) > (module.name in _LAZY):
    yield f'imports inside {", ".join(sorted(lazy))}'
  if not _is_listed(module.name, (_DOOR, *_GIN, *_LAZY)):
    for name, _ in module.calls():
      if name in ('importlib.import_module', '__import__'):
        yield f'calls {name}'


def _gin_and_flags_at_the_edge(module: _Module) -> Iterator[str]:
  for name, _ in module.imports():
    if name.partition('.')[0] == 'gin' and not _is_listed(module.name, _GIN):
      yield f'imports {name}'
    if f'{name}.'.startswith('absl.flags.') and module.name not in _FLAGS:
      yield f'imports {name}'


def _compiles_in_few_places(module: _Module) -> Iterator[str]:
  for node in module.nodes:
    if isinstance(node, ast.Attribute) and module.name not in _COMPILES:
      if ast.unparse(node) == 'tf.function':
        yield 'uses tf.function'


_OS_WRITES = frozenset(
  'os.' + name
  for name in (
    'chmod fdopen link makedirs mkdir open remove removedirs rename renames '
    'replace rmdir symlink truncate unlink utime'
  ).split()
)
_PATH_WRITES = frozenset(
  'chmod hardlink_to mkdir rename rmdir symlink_to tofile touch unlink '
  'write_bytes write_text'.split()
)
_READS = frozenset(
  f'tf.io.gfile.{name}' for name in 'exists glob isdir listdir stat'.split()
)
_PREFIXES = ('np.save', 'shutil.', 'tempfile.', 'tf.io.gfile.', 'tf.io.write')


def _writes_through_files(module: _Module) -> Iterator[str]:
  if module.name in _WRITES:
    return
  for name, call in module.calls():
    owner, _, method = name.rpartition('.')
    if name in _READS:
      continue
    if name in ('open', 'tf.io.gfile.GFile') or method == 'open':
      is_path = not owner or method == 'GFile'
      mode = [*call.args[1 if is_path else 0 :][:1]]
      mode += [k.value for k in call.keywords if k.arg == 'mode']
      if name in _OS_WRITES or any(
        not isinstance(m, ast.Constant) or set('wax+') & set(str(m.value))
        for m in mode
      ):
        yield f'calls {ast.unparse(call)}'
    elif name in _OS_WRITES or name.startswith(_PREFIXES):
      yield f'calls {name}'
    # An event writer of TensorFlow's writes into a directory files.py made.
    elif method in _PATH_WRITES and not owner.endswith(('files', '_writer')):
      yield f'calls {name}'


_FORBIDDEN_IMPORTS = ('cloudpickle', 'dill', 'marshal', 'pickle', 'shelve')
_FORBIDDEN_CALLS = ('eval', 'exec', 'os.popen', 'os.system', 'yaml.load')


def _data_is_not_code(module: _Module) -> Iterator[str]:
  for name, _ in module.imports():
    if name.partition('.')[0] in _FORBIDDEN_IMPORTS:
      yield f'imports {name}'
  for name, call in module.calls():
    if name in _FORBIDDEN_CALLS:
      yield f'calls {name}'
    if name.endswith(('load_model', 'saved_model.load')):
      if module.name not in _LOADS_MODELS:
        yield f'calls {name}'
    for keyword in call.keywords:
      if keyword.arg in ('shell', 'allow_pickle'):
        if not _is_false(keyword.value):
          yield f'calls {name} with {keyword.arg}'


def _is_false(node: ast.expr) -> bool:
  return isinstance(node, ast.Constant) and node.value is False


def _stays_small(module: _Module) -> Iterator[str]:
  lines = len(module.source.splitlines())
  if lines > _MAX_LINES:
    yield f'has {lines} lines'
  for function in _functions(module.tree):
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:  # it may be long
      end = function.body[0].end_lineno
      assert end is not None
      lines -= end - function.body[0].lineno + 1
    if lines > _MAX_FUNCTION_LINES:
      yield f'{function.name} has {lines} lines without its docstring'


def _functions(
  tree: ast.Module,
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      yield node


_LAWS = {
  _imports_go_down: [
    ('step.loss', 'from tftrain.train import trainer'),
    ('step.loss', 'import tftrain'),
    ('step.loss', 'from tftrain import Trainer'),
    ('data.arrays', 'from tftrain.step import loss'),
  ],
  _private_modules_stay_in_their_room: [
    ('train.trainer', 'from tftrain.data import _cursor'),
    ('config.loader', 'from tftrain.launch import _modes'),
  ],
  _no_relative_import: [('step.loss', 'from . import errors')],
  _no_private_tensorflow: [
    ('step.loss', 'from tensorflow.python.ops import array_ops'),
    ('step.loss', 'from tensorflow import python'),
    ('step.loss', 'import tensorflow.python'),
  ],
  _no_lazy_import: [
    ('step.loss', 'def f():\n  import tensorflow'),
    ('step.loss', 'importlib.import_module("tensorflow")'),
    ('launch.command', 'def f():\n  import gin\ndef g():\n  import keras'),
  ],
  _gin_and_flags_at_the_edge: [
    ('experiment.experiment', 'import gin'),
    ('experiment.experiment', 'from gin import config'),
    ('launch.command', 'import gin'),
    ('experiment.experiment', 'from absl import flags'),
  ],
  _compiles_in_few_places: [
    ('task.task', '@tf.function\ndef f(): pass'),
    ('task.task', 'f = tf.function(g, jit_compile=True)'),
  ],
  _writes_through_files: [
    ('experiment.run', 'open(path, "w")'),
    ('experiment.run', 'open(path, mode=mode)'),
    ('experiment.run', 'path.open("ab")'),
    ('experiment.run', 'tf.io.gfile.GFile(path, "w")'),
    ('experiment.run', 'tf.io.gfile.rename(a, b)'),
    ('experiment.run', 'os.open(path, os.O_RDONLY)'),
    ('experiment.run', 'os.rename(a, b)'),
    ('experiment.run', 'path.write_text("")'),
    ('experiment.run', '(path / "x").mkdir()'),
    ('experiment.run', 'shutil.rmtree(path)'),
    ('experiment.run', 'np.savez(path, x)'),
  ],
  _data_is_not_code: [
    ('experiment.run', 'import pickle'),
    ('experiment.run', 'from pickle import loads'),
    ('experiment.run', 'eval(text)'),
    ('experiment.run', 'exec(text)'),
    ('experiment.run', 'yaml.load(text)'),
    ('experiment.run', 'subprocess.run(text, shell=True)'),
    ('experiment.run', 'np.load(path, allow_pickle=True)'),
    ('checkpoint.checkpointer', 'tf.saved_model.load(path)'),
    ('checkpoint.checkpointer', 'keras.models.load_model(path)'),
  ],
  _stays_small: [
    ('step.loss', 'x = 1\n' * (_MAX_LINES + 1)),
    ('step.loss', 'def f():\n' + '  x = 1\n' * _MAX_FUNCTION_LINES),
  ],
}
_BROKEN = [(law, *case) for law, cases in _LAWS.items() for case in cases]


def test_every_file_is_in_a_room():
  assert not [m.name for m in _modules() if _room(m.name) not in (*ROOMS, '')]


def test_every_room_says_its_purpose_in_a_sentence():
  for room in ROOMS:
    path = _PACKAGE / room.replace('.', '/') / '__init__.py'
    if path.parent.is_dir():
      text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
      assert text and text.splitlines()[0].endswith('.'), room


@pytest.mark.parametrize('law', _LAWS, ids=lambda law: law.__name__)
def test_law_is_kept(law):
  broken = [f'{m.name} {what}' for m in _modules() for what in law(m)]
  assert not broken


@pytest.mark.parametrize(
  ('law', 'name', 'source'), _BROKEN, ids=[c[0].__name__ for c in _BROKEN]
)
def test_law_can_be_broken(law, name, source):
  assert list(law(_Module(name, source)))


def test_laws_allow_what_is_meant():
  source = """
from tftrain import errors
from absl import logging
files.write_text(path, text)
open(path).read()
open(path, 'rb')
text.replace('a', 'b')
os.write(pipe, b'')
np.load(path, allow_pickle=False)
"""
  assert not [
    w for law in _LAWS for w in law(_Module('experiment.run', source))
  ]


def _loaded_by(code: str, *names: str) -> str:
  """Returns which of `names` a fresh Python has imported after `code`."""
  listing = f'print([m for m in {names} if m in sys.modules])'
  found = subprocess.run(
    [sys.executable, '-c', f'import sys\n{code}\n{listing}'],
    capture_output=True,
    text=True,
    cwd=paths.ROOT,
    env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
  )
  assert found.returncode == 0, found.stderr
  return found.stdout.splitlines()[-1]


def test_light_modules_import_without_tensorflow():
  light = [
    f'tftrain.{m.name}'
    for m in _modules()
    if _is_listed(m.name, _WITHOUT_TENSORFLOW)
    and m.name not in _HEAVY
    and not m.name.endswith('__main__')
  ]
  code = f'import tftrain, {", ".join(light)}'
  assert _loaded_by(code, 'tensorflow', 'keras') == '[]'


def test_the_core_takes_a_step_without_gin():
  code = """
import keras, numpy as np, tftrain
x = np.ones((8, 2), 'float32')
def task():
  model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
  return tftrain.SupervisedTask(model, keras.losses.MeanSquaredError(),
                                keras.optimizers.SGD(0.1))
data = lambda: tftrain.Arrays((x, x[:, :1]), batch_size=4)
tftrain.Experiment(task, data, steps=1)
trainer = tftrain.Trainer(task(), data())
trainer.train(1)
assert trainer.step == 1
"""
  assert _loaded_by(code, 'tensorflow', 'gin') == "['tensorflow']"


# BUILD


def _generate_build(*arguments, root=paths.ROOT):
  return subprocess.run(
    [sys.executable, root / 'scripts' / 'generate_build', *arguments],
    capture_output=True,
    text=True,
  )


def test_build_is_what_the_imports_are():
  found = _generate_build('--check')
  assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
def test_a_build_that_differs_is_found(tmp_path):
  for name in ('scripts', 'tftrain', 'tests', 'examples', 'benchmarks'):
    shutil.copytree(paths.ROOT / name, tmp_path / name)
  path = tmp_path / 'tftrain' / 'errors.py'
  path.write_text('from tftrain import testing\n')
  found = _generate_build('--check', root=tmp_path)
  assert found.returncode == 1 and 'tftrain/BUILD' in found.stdout
  _generate_build(root=tmp_path)
  assert _generate_build('--check', root=tmp_path).returncode == 0
