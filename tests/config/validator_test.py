"""Configuration: what is said of mistakes, and where each value comes from.

All of it is read in this process; nothing is trained.
"""

import json
import pathlib
import sys

import gin
import pytest

from tftrain import errors
from tftrain.config import loader
from tftrain.launch import command as command_lib

_ROOT = pathlib.Path(__file__).parent.parent

_MODULE = """
import gin
import keras

from tests import cases
import tftrain


@gin.register(module='{name}')
def make_task(optimizer=keras.optimizers.SGD, width: int = 8, password=''):
  return cases.supervised(optimizer())


@gin.register(module='{name}')
def points(batch_size, training: bool = True, seed: int = 0):
  return tftrain.Arrays(cases.arrays(seed=seed), batch_size, training=training)
"""
_PLAIN = _MODULE.replace("@gin.register(module='{name}')\n", '')

_GOOD = """import mine

STEPS = 4
RATE = 0.01

Experiment:
  task = @mine.make_task
  train_data = @train/mine.points
  eval_data = {'test': @eval/mine.points}
  steps = %STEPS

mine.make_task.optimizer = @Adam
Adam.learning_rate = %RATE
mine.points.batch_size = 8
eval/mine.points:
  training = False
  seed = 1
"""
_DYNAMIC = """from __gin__ import dynamic_registration
import keras
import mine
import tftrain

STEPS = 4

tftrain.Experiment:
  task = @mine.make_task
  train_data = @train/mine.points
  eval_data = {'test': @eval/mine.points}
  steps = %STEPS

mine.make_task.optimizer = @keras.optimizers.Adam
keras.optimizers.Adam.learning_rate = 0.01
mine.points.batch_size = 8
eval/mine.points:
  training = False
"""


@pytest.fixture(autouse=True)
def _fresh(own_directory):
  """Each test registers mine.points anew."""
  (own_directory / 'mine.py').write_text(_MODULE.format(name='mine'))


def load(text, *flags, **options):
  """What the command makes of a file `a.gin` and some flags."""
  pathlib.Path('a.gin').write_text(text)
  argv, origins = command_lib.rewritten(['tftrain', *flags])
  bindings = [word.removeprefix('--gin_bindings=') for word in argv[1:]]
  return loader.load_all(['a.gin'], bindings, origins=origins, **options)


def said(text, *flags, **options):
  """The one line that refuses it."""
  with pytest.raises(errors.ConfigError) as raised:
    load(text, *flags, **options)
  (line,) = str(raised.value).splitlines()
  return line


def with_line(line):
  return f'{_GOOD}{line}\n'


def replaced(old, new, text=_GOOD):
  assert old in text
  return text.replace(old, new)


# The texts that were promised, each to the letter.
_LINES = {
  'an unknown name': (
    with_line('mine.mke_task.width = 3'),
    "a.gin:18: no configurable is called 'mine.mke_task'; did you mean "
    "'make_task'?",
  ),
  'an unknown parameter': (
    with_line('mine.make_task.widht = 3'),
    "a.gin:18: mine.make_task has no parameter 'widht'; did you mean 'width'?",
  ),
  'a scope that nothing enters': (
    with_line('evl/mine.points.batch_size = 3'),
    "a.gin:18: evl/mine.points.batch_size has no effect: the scope 'evl' is "
    "not entered (scopes used: eval, train); did you mean 'eval'?",
  ),
  'a scope within another': (
    with_line('eval/train/mine.points.batch_size = 3'),
    'a.gin:18: eval/train/mine.points.batch_size has no effect: the scope '
    "'eval/train' is not entered (scopes used: eval, train); did you mean "
    "'train'?",
  ),
  'a forgotten dot': (
    with_line('learning_rate = 3'),
    "a.gin:18: 'learning_rate = 3' only sets the macro %learning_rate, which "
    "nothing reads; did you mean 'Adam.learning_rate = 3'?",
  ),
  'a macro that nothing reads': (
    with_line('STEPZ = 3'),
    'a.gin:18: nothing reads the macro STEPZ; use it as %STEPZ, or write '
    "Name.STEPZ to bind a parameter; did you mean 'STEPS'?",
  ),
  'a macro made of itself': (
    replaced('STEPS = 4', 'STEPS = %STEPS'),
    'a.gin:3: the macro STEPS is made of itself; give it a value',
  ),
  'text without quotes': (
    with_line('Experiment.init_from = /data/x'),
    'a.gin:18: \'/data/x\' is not a gin value; strings need quotes: "/data/x"',
  ),
  'true': (
    with_line('Experiment.export = true'),
    "a.gin:18: 'true' is not a gin value; use True",
  ),
  'none within a list': (
    with_line('Experiment.actions = [1, none]'),
    "a.gin:18: 'none' is not a gin value; use None",
  ),
  'true on a line of its own': (
    with_line('Experiment.actions = [\n  1,\n  true,\n]'),
    "a.gin:20: 'true' is not a gin value; use True",
  ),
  'no statement': (
    with_line('Experiment.steps 5'),
    'a.gin:18: not gin: Experiment.steps 5; values are Python literals (True, '
    "0.1, 'text'), @name, @name() or %MACRO",
  ),
  'arithmetic': (
    replaced('RATE = 0.01', 'RATE = 1/3'),
    "a.gin:4: '1/3' is not a gin value; gin has no arithmetic: write "
    '0.3333333333333333',
  ),
  'a class without @': (
    replaced('= @Adam', '= Adam'),
    "a.gin:12: 'Adam' is not a gin value; use @Adam (class) or @Adam() "
    '(instance)',
  ),
  'a function without @': (
    replaced('@eval/mine.points}', 'eval/mine.points}'),
    "a.gin:9: 'eval/mine.points' is not a gin value; use @eval/mine.points "
    '(function) or @eval/mine.points() (what it returns)',
  ),
  'a macro without %': (
    replaced('%STEPS', 'STEPS'),
    "a.gin:10: 'STEPS' is not a gin value; use %STEPS (macro) or quotes: "
    '"STEPS"',
  ),
  'the wrong type': (
    with_line("Adam.beta_1 = 'abc'"),
    "a.gin:18: Adam.beta_1 = 'abc' is str, expected float",
  ),
  'the wrong type out of a macro': (
    replaced('STEPS = 4', 'STEPS = %N\nN = 4.5'),
    'a.gin:11: Experiment.steps = 4.5 is float, expected int or None',
  ),
  'a value twice': (
    with_line('Experiment.steps = 5'),
    'a.gin:18: Experiment.steps is bound a second time, after a.gin:10; remove '
    'one of them',
  ),
  'a macro twice': (
    with_line('STEPS = 5'),
    'a.gin:18: STEPS is bound a second time, after a.gin:3; remove one of them',
  ),
  'a value that nobody takes': (
    with_line('SGD.momentum = 0.9'),
    'a.gin:18: SGD.momentum has no effect: nothing refers to @SGD; do so, or '
    'remove the binding',
  ),
  'a required value': (
    replaced('mine.points.batch_size = 8', 'eval/mine.points.batch_size = 8'),
    "a.gin:8: required: points.batch_size (scope 'train'); set it in a gin "
    'file or with --gin.train/points.batch_size=...',
  ),
  'a required macro': (
    replaced('STEPS = 4', 'STEPS = %gin.REQUIRED'),
    'a.gin:3: required: STEPS; set it in a gin file or with --gin.STEPS=...',
  ),
  'no task': (
    replaced('  task = @mine.make_task\n', '').replace(
      'mine.make_task.optimizer = @Adam\nAdam.learning_rate = %RATE\n', ''
    ),
    'required: Experiment.task; set it in a gin file or with '
    '--gin.Experiment.task=...',
  ),
  'itself': (
    "include 'a.gin'\n" + _GOOD,
    'a.gin:1: a.gin includes itself; take one of the includes away',
  ),
}


@pytest.mark.parametrize('what', _LINES)
def test_what_is_said_of(what):
  text, line = _LINES[what]
  assert said(text) == line


_FLAGS = {
  '--gin.TFRecords.pattern=/data/x': (
    '--gin.TFRecords.pattern=/data/x: not a gin value; strings need quotes: '
    '--gin.TFRecords.pattern=\'"/data/x"\''
  ),
  '--gin.Experiment.export=true': (
    '--gin.Experiment.export=true: not a gin value; use True: '
    '--gin.Experiment.export=True'
  ),
  '--gin.RATE=1/4': (
    '--gin.RATE=1/4: not a gin value; gin has no arithmetic: --gin.RATE=0.25'
  ),
  '--gin.mine.make_task.optimizer=SGD': (
    '--gin.mine.make_task.optimizer=SGD: not a gin value; use @SGD (class) or '
    '@SGD() (instance): --gin.mine.make_task.optimizer=@SGD'
  ),
  '--gin.Experiment.actions=[true]': (
    "--gin.Experiment.actions: 'true' is not a gin value; use True"
  ),
  '--gin.Experiment.stesp=3': (
    "--gin.Experiment.stesp: Experiment has no parameter 'stesp'; did you mean "
    "'steps'?"
  ),
  '--gin.tarin/mine.points.seed=3': (
    '--gin.tarin/mine.points.seed: tarin/mine.points.seed has no effect: the '
    "scope 'tarin' is not entered (scopes used: eval, train); did you mean "
    "'train'?"
  ),
  '--gin.Experiment.steps': (
    '--gin.Experiment.steps: a binding is written --gin.NAME=VALUE, such as '
    '--gin.Experiment.steps=100'
  ),
  '--gin.STEPS=': (
    '--gin.STEPS=: a binding is written --gin.NAME=VALUE, such as '
    '--gin.STEPS=100'
  ),
}


@pytest.mark.parametrize('flag', _FLAGS)
def test_what_is_said_of_a_flag(flag):
  assert said(_GOOD, flag) == _FLAGS[flag]


@pytest.mark.parametrize('value', ['10 ** 99 ** 9', '(-8) ** 0.5', '1 / 0'])
def test_numbers_that_nobody_can_write_are_not_computed(value):
  line = said(replaced('STEPS = 4', f'STEPS = {value}'))
  assert line.startswith(
    f'a.gin:3: not gin: STEPS = {value}; values are Python'
  )


def test_flags_bind_and_the_last_one_counts():
  flags = ['--gin.STEPS=5', '--gin_bindings=STEPS = 6', '--gin.STEPS=7']
  flags += ['--gin.eval/mine.points.seed=2', "--gin.Experiment.strategy='auto'"]
  loaded = load(_GOOD, *flags)
  assert loaded.experiment.steps == 7
  assert gin.query_parameter('eval/mine.points.seed') == 2


def test_words_after_two_dashes_are_no_bindings():
  words = ['tftrain', '--gin.A=1', '--', '--gin.B=2']
  found, origins = command_lib.rewritten(words)
  assert found == ['tftrain', '--gin_bindings=A = 1', '--', '--gin.B=2']
  assert origins == {'A = 1': '--gin.A'}


def test_a_file_that_is_not_there_has_close_matches():
  load(_GOOD)
  gin.clear_config()
  with pytest.raises(errors.ConfigError) as raised:
    loader.load(['aa.gin'])
  line = str(raised.value)
  assert line.startswith("--gin_file: no file 'aa.gin' in ")
  assert line.endswith(
    'did you mean ' + str(pathlib.Path.cwd() / 'a.gin') + '?'
  )


def test_includes_are_looked_for_beside_the_file_then_in_the_search_paths():
  for folder, rate in (('one', 0.1), ('two', 0.2)):
    pathlib.Path(folder).mkdir()
    pathlib.Path(folder, 'rate.gin').write_text(f'RATE = {rate}\n')
  pathlib.Path('two', 'seed.gin').write_text('eval/mine.points.seed = 5\n')
  text = replaced('RATE = 0.01', "include 'rate.gin'\ninclude 'seed.gin'")
  text = text.replace('  seed = 1\n', '')
  pathlib.Path('one', 'b.gin').write_text(text)
  # The package's own come last.
  pathlib.Path('one', 'c.gin').write_text("include 'optimizers/adam.gin'\n")
  loader.load(['one/b.gin'], search_paths=['two'])
  assert gin.query_parameter('%RATE') == 0.1
  assert gin.query_parameter('eval/mine.points.seed') == 5
  with pytest.raises(errors.ConfigError, match='nothing reads the macro'):
    gin.clear_config()
    loader.load(['one/c.gin', 'one/b.gin'], search_paths=['two'])


# Dynamic registration: nothing of mine.py is decorated.


@pytest.fixture
def plain(tmp_path):
  (tmp_path / 'mine.py').write_text(_PLAIN)


_DYNAMIC_LINES = {
  'a name that its module has not': (
    ('@mine.make_task', '@mine.make_tsk'),
    "a.gin:9: no configurable is called 'mine.make_tsk': mine has no "
    "'make_tsk'; did you mean 'mine.make_task'?",
  ),
  'a name that is not imported': (
    ('import keras\n', ''),
    "a.gin:13: no import of this file provides 'keras' of "
    "'keras.optimizers.Adam'; with dynamic registration, import 'keras' here",
  ),
  'a module': (
    ('task = @mine.make_task', 'task = @mine'),
    "a.gin:9: 'mine' is module; name a class or a function",
  ),
  'an unknown parameter': (
    ('mine.points.batch_size', 'mine.points.batch_sise'),
    "a.gin:16: mine.points has no parameter 'batch_sise'; did you mean "
    "'batch_size'?",
  ),
  'the wrong type': (
    ('training = False', "training = 'no'"),
    "a.gin:18: eval/mine.points.training = 'no' is str, expected bool",
  ),
  'an import before it': (
    ('from __gin__ import dynamic_registration\nimport keras',
     'import keras\nfrom __gin__ import dynamic_registration'),
    "a.gin:2: 'from __gin__ import dynamic_registration': Dynamic registration "
    'should be enabled before any other modules are imported.; put it before '
    'all other imports',
  ),
}  # fmt: skip


@pytest.mark.parametrize('what', _DYNAMIC_LINES)
def test_what_is_said_under_dynamic_registration_of(what, plain):
  (old, new), line = _DYNAMIC_LINES[what]
  if what == 'a name that is not imported':
    with pytest.raises(errors.ConfigError) as raised:
      load(replaced(old, new, _DYNAMIC))
    assert str(raised.value) == line
  else:
    assert said(replaced(old, new, _DYNAMIC)) == line


def test_dynamic_registration_trains_and_its_text_can_be_read_again(
  plain, tmp_path
):
  loaded = load(_DYNAMIC, '--gin.STEPS=3')
  job = loaded.experiment.prepare(tmp_path / 'run', quiet=True)
  loader.check_used()
  assert job.last_step == 3
  assert float(job.trainer.task.optimizer.learning_rate) == pytest.approx(0.01)
  saved = loader.texts()['config.gin']
  assert 'from __gin__ import dynamic_registration' in saved
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.gin').write_text(saved)
  loader.check_same(tmp_path / 'run')
  gin.clear_config()
  loader.load(['run/config.gin'])
  assert loader.texts()['config.gin'] == saved
  # The other one is refused, and what may change may.
  gin.clear_config()
  load(_DYNAMIC, '--gin.STEPS=5')
  loader.check_same(tmp_path / 'run')
  gin.clear_config()
  load(_DYNAMIC, '--gin.points.batch_size=4')
  with pytest.raises(errors.RunDirectoryError, match='batch_size: 8 -> 4'):
    loader.check_same(tmp_path / 'run')


def test_classic_files_and_dynamic_ones_include_each_other(plain, tmp_path):
  (tmp_path / 'rate.gin').write_text('RATE = 0.5\nAdam.learning_rate = %RATE\n')
  text = replaced(
    'keras.optimizers.Adam.learning_rate = 0.01',
    "include 'rate.gin'",
    _DYNAMIC,
  )
  load(text)
  assert gin.query_parameter('Adam.learning_rate') is not None
  assert gin.query_parameter('%RATE') == 0.5


# What Python does is not to be mistaken for nothing.


def test_scopes_and_names_that_python_uses_are_known(tmp_path):
  (tmp_path / 'calls.py').write_text(
    'import gin\n'
    "@gin.configurable(module='calls')\n"
    'def size(n=3):\n  return n\n'
    'def enter():\n'
    "  with gin.config_scope('teacher'):\n    return size()\n"
  )
  text = 'import calls\n' + with_line('calls.size.n = 4\nteacher/size.n = 5')
  load(text)
  gin.clear_config()
  line = said(text + 'techer/calls.size.n = 6\n')
  assert "scope 'techer' is not entered" in line
  assert "did you mean 'teacher'?" in line


def test_a_scope_that_is_computed_may_be_any(tmp_path):
  (tmp_path / 'any_scope.py').write_text(
    'import gin\ndef enter(name):\n  return gin.config_scope(name)\n'
  )
  load('import any_scope\n' + with_line('evl/mine.points.seed = 4'))


def test_a_binding_in_a_scope_that_was_not_used_has_no_effect(tmp_path):
  (tmp_path / 'any_scope.py').write_text(
    'import gin\ndef enter(name):\n  return gin.config_scope(name)\n'
  )
  loaded = load('import any_scope\n' + with_line('evl/mine.points.seed = 4'))
  loaded.experiment.prepare(tmp_path / 'run', quiet=True)
  with pytest.raises(errors.ConfigError) as raised:
    loader.check_used()
  assert 'the binding evl/mine.points.seed has no effect' in str(raised.value)


def test_constants_are_no_macros():
  gin.constant('mine.LENGTH', 5)
  try:
    assert load(replaced('%STEPS', '%mine.LENGTH').replace('STEPS = 4\n', ''))
  finally:
    gin.clear_config(clear_constants=True)


# describe


def test_the_tree_says_where_each_value_comes_from():
  loaded = load(_GOOD, '--gin.RATE=0.5', '--gin_bindings=Experiment.keep = 1')
  found = json.loads(loaded.described('json'))
  assert found['steps'] == 4
  top = found['recipe']['parameters']
  assert found['recipe']['name'] == 'Experiment'
  assert top['steps'] == {
    'value': 4, 'source': 'a.gin:3', 'macro': 'STEPS', 'bound': 'a.gin:10'
  }  # fmt: skip
  assert top['keep'] == {'value': 1, 'source': '--gin_bindings'}
  assert top['log_every'] == {'value': 100, 'source': 'default'}
  (task,) = top['task']['references']
  assert task['parameters']['width'] == {'value': 8, 'source': 'default'}
  (adam,) = task['parameters']['optimizer']['references']
  rate = adam['parameters']['learning_rate']
  assert (rate['value'], rate['source']) == (0.5, '--gin.RATE')
  (test,) = top['eval_data']['references']
  assert test['scope'] == 'eval'
  assert test['parameters']['training']['value'] is False
  assert test['parameters']['training']['source'] == 'a.gin:16'
  assert test['parameters']['batch_size']['source'] == 'a.gin:14'
  (train,) = top['train_data']['references']
  assert train['parameters']['training'] == {'value': True, 'source': 'default'}


def test_the_tree_of_the_digits_reads_well():
  loaded = loader.load_all([str(_ROOT / 'configs' / 'digits.gin')])
  lines = loaded.described().splitlines()
  assert lines[0] == 'Experiment'
  (rate,) = [line for line in lines if 'learning_rate = 0.001' in line]
  assert rate.startswith('      learning_rate = 0.001 ')
  assert rate.endswith('adam.gin:10)') and '(%LEARNING_RATE, ' in rate
  assert "  eval_data = {'test': @digits.test_data}" in loaded.described()
  assert all(len(line.split('  ')) > 1 for line in lines[1:])


def test_steps_of_epochs_need_the_data():
  text = replaced('steps = %STEPS', 'epochs = %STEPS')
  found = json.loads(load(text).described('json'))
  assert found['steps'] == 34  # 4 epochs of 67 examples in eights


# Secrets


def test_secrets_are_left_out_and_asked_for_again(tmp_path):
  secret = replaced('RATE = 0.01', "RATE = 0.01\nWORD = 'sesame'")
  secret += 'mine.make_task.password = %WORD\n'
  loaded = load(secret)
  assert 'sesame' not in loaded.described()
  assert 'sesame' not in loaded.described('json')
  loaded.experiment.prepare(tmp_path / 'run', quiet=True)
  texts = loader.texts()
  assert not [name for name, text in texts.items() if 'sesame' in text]
  assert "WORD = '[redacted]'" in texts['config.gin']
  (tmp_path / 'run').mkdir()
  saved = tmp_path / 'run' / 'config.gin'
  saved.write_text(texts['config.gin'])
  loader.check_same(tmp_path / 'run')  # resumed, with another password too
  gin.clear_config()
  load(secret.replace('sesame', 'open'))
  loader.check_same(tmp_path / 'run')
  gin.clear_config()
  with pytest.raises(errors.ConfigError) as raised:
    loader.load([str(saved)])
  assert "give it anew, as --gin.WORD='...'" in str(raised.value)
  gin.clear_config()
  loader.load([str(saved)], ["WORD = 'open'"])


def test_names_that_only_look_like_secrets_stay(tmp_path):
  text = replaced(
    'width: int = 8', 'pad_token=None, key=None, sort_key=None', _MODULE
  )
  (tmp_path / 'mine.py').write_text(text.format(name='mine'))
  names = ('pad_token', 'key', 'sort_key')
  load(_GOOD + ''.join(f"mine.make_task.{n} = 'a'\n" for n in names))
  saved = loader.texts()['config.gin']
  for name in names:
    assert f"make_task.{name} = 'a'" in saved


# Trust


def test_data_may_name_what_the_script_has_imported(tmp_path):
  import mine  # noqa: F401

  text = replaced('import mine\n', '')
  loaded = load(text, trust='data')
  assert loaded.experiment.steps == 4


_REFUSED = {
  'an import': ('import os\n' + _GOOD, "a.gin:1: 'import os' runs code"),
  'an import in an include': (
    "include 'b.gin'\n" + _GOOD,
    "b.gin:1: 'import evil' runs code",
  ),
  'dynamic registration': (
    _DYNAMIC,
    "a.gin:1: 'from __gin__ import dynamic_registration' runs code",
  ),
  'a name that nobody registered': (
    replaced('import mine\n', '').replace('mine.', 'their.'),
    "a.gin:6: 'their.make_task' is not among the names",
  ),
  'a generator': ('A = @Generator()\n', 'a.gin:1: Generator calls what'),
  'a data set with code': (
    'A = [(1, {1: @Tfds()})]\n',
    'a.gin:1: Tfds runs the',
  ),
  'a file anywhere': (
    "CsvWriter.path = '/etc/x'\n",
    'a.gin:1: CsvWriter writes to any path',
  ),
  'a machine elsewhere': (
    "Examples.service = 'grpc://there'\n",
    'a.gin:1: Examples.service sends the data',
  ),
  'what Keras would import': (
    "Adam.name = {'module': 'evil', 'class_name': 'A'}\n",
    "a.gin:1: a dict with the key 'module' may have Keras import",
  ),
  'what Keras would import, in disguise': (
    "K = 'module'\nAdam.name = {%K: 'evil', 'a': 1}\n",
    'a.gin:2: a dict with the key %K may have Keras import',
  ),
  'a maker of objects': (
    'A = @keras.optimizers.deserialize()\n',
    "a.gin:1: 'keras.optimizers.deserialize' is not among",
  ),
}


@pytest.mark.parametrize('what', _REFUSED)
def test_data_is_no_program(what, tmp_path):
  (tmp_path / 'evil.py').write_text('open("ran", "w").close()\n')
  (tmp_path / 'b.gin').write_text('import evil\n')
  text, start = _REFUSED[what]
  assert said(text, trust='data').startswith(start)
  assert not (tmp_path / 'ran').exists()
  assert 'evil' not in sys.modules


def test_a_binding_on_the_command_line_is_data_too():
  line = said('', '--gin_bindings=import os', trust='data')
  assert line.startswith("--gin_bindings: 'import os' runs code")
