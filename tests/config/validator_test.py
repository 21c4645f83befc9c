"""The validator: each mistake in a gin file or flag is one line."""

import gin
import pytest

from tests.support import gin_texts
from tftrain.launch import command as command_lib

# The texts that were promised, each to the letter.
_LINES = {
  'an unknown name': (
    gin_texts.with_line('mine.mke_task.width = 3'),
    "a.gin:18: no configurable is called 'mine.mke_task'; did you mean "
    "'make_task'?",
  ),
  'an unknown parameter': (
    gin_texts.with_line('mine.make_task.widht = 3'),
    "a.gin:18: mine.make_task has no parameter 'widht'; did you mean 'width'?",
  ),
  'a scope that nothing enters': (
    gin_texts.with_line('evl/mine.points.batch_size = 3'),
    "a.gin:18: evl/mine.points.batch_size has no effect: the scope 'evl' is "
    "not entered (scopes used: eval, train); did you mean 'eval'?",
  ),
  'a scope within another': (
    gin_texts.with_line('eval/train/mine.points.batch_size = 3'),
    'a.gin:18: eval/train/mine.points.batch_size has no effect: the scope '
    "'eval/train' is not entered (scopes used: eval, train); did you mean "
    "'train'?",
  ),
  'a forgotten dot': (
    gin_texts.with_line('learning_rate = 3'),
    "a.gin:18: 'learning_rate = 3' only sets the macro %learning_rate, which "
    "nothing reads; did you mean 'Adam.learning_rate = 3'?",
  ),
  'a macro that nothing reads': (
    gin_texts.with_line('STEPZ = 3'),
    'a.gin:18: nothing reads the macro STEPZ; use it as %STEPZ, or write '
    "Name.STEPZ to bind a parameter; did you mean 'STEPS'?",
  ),
  'a macro made of itself': (
    gin_texts.replaced('STEPS = 4', 'STEPS = %STEPS'),
    'a.gin:3: the macro STEPS is made of itself; give it a value',
  ),
  'text without quotes': (
    gin_texts.with_line('Experiment.init_from = /data/x'),
    'a.gin:18: \'/data/x\' is not a gin value; strings need quotes: "/data/x"',
  ),
  'true': (
    gin_texts.with_line('Experiment.export = true'),
    "a.gin:18: 'true' is not a gin value; use True",
  ),
  'none within a list': (
    gin_texts.with_line('Experiment.actions = [1, none]'),
    "a.gin:18: 'none' is not a gin value; use None",
  ),
  'true on a line of its own': (
    gin_texts.with_line('Experiment.actions = [\n  1,\n  true,\n]'),
    "a.gin:20: 'true' is not a gin value; use True",
  ),
  'no statement': (
    gin_texts.with_line('Experiment.steps 5'),
    'a.gin:18: not gin: Experiment.steps 5; values are Python literals (True, '
    "0.1, 'text'), @name, @name() or %MACRO",
  ),
  'arithmetic': (
    gin_texts.replaced('RATE = 0.01', 'RATE = 1/3'),
    "a.gin:4: '1/3' is not a gin value; gin has no arithmetic: write "
    '0.3333333333333333',
  ),
  'a class without @': (
    gin_texts.replaced('= @Adam', '= Adam'),
    "a.gin:12: 'Adam' is not a gin value; use @Adam (class) or @Adam() "
    '(instance)',
  ),
  'a function without @': (
    gin_texts.replaced('@eval/mine.points}', 'eval/mine.points}'),
    "a.gin:9: 'eval/mine.points' is not a gin value; use @eval/mine.points "
    '(function) or @eval/mine.points() (what it returns)',
  ),
  'a macro without %': (
    gin_texts.replaced('%STEPS', 'STEPS'),
    "a.gin:10: 'STEPS' is not a gin value; use %STEPS (macro) or quotes: "
    '"STEPS"',
  ),
  'the wrong type': (
    gin_texts.with_line("Adam.beta_1 = 'abc'"),
    "a.gin:18: Adam.beta_1 = 'abc' is str, expected float",
  ),
  'the wrong type out of a macro': (
    gin_texts.replaced('STEPS = 4', 'STEPS = %N\nN = 4.5'),
    'a.gin:11: Experiment.steps = 4.5 is float, expected int or None',
  ),
  'a value twice': (
    gin_texts.with_line('Experiment.steps = 5'),
    'a.gin:18: Experiment.steps is bound a second time, after a.gin:10; remove '
    'one of them',
  ),
  'a macro twice': (
    gin_texts.with_line('STEPS = 5'),
    'a.gin:18: STEPS is bound a second time, after a.gin:3; remove one of them',
  ),
  'a value that nobody takes': (
    gin_texts.with_line('SGD.momentum = 0.9'),
    'a.gin:18: SGD.momentum has no effect: nothing refers to @SGD; do so, or '
    'remove the binding',
  ),
  'a required value': (
    gin_texts.replaced(
      'mine.points.batch_size = 8', 'eval/mine.points.batch_size = 8'
    ),
    "a.gin:8: required: points.batch_size (scope 'train'); set it in a gin "
    'file or with --gin.train/points.batch_size=...',
  ),
  'a required macro': (
    gin_texts.replaced('STEPS = 4', 'STEPS = %gin.REQUIRED'),
    'a.gin:3: required: STEPS; set it in a gin file or with --gin.STEPS=...',
  ),
  'no task': (
    gin_texts.replaced('  task = @mine.make_task\n', '').replace(
      'mine.make_task.optimizer = @Adam\nAdam.learning_rate = %RATE\n', ''
    ),
    'required: Experiment.task; set it in a gin file or with '
    '--gin.Experiment.task=...',
  ),
  'itself': (
    "include 'a.gin'\n" + gin_texts.GOOD,
    'a.gin:1: a.gin includes itself; take one of the includes away',
  ),
}


@pytest.mark.parametrize('what', _LINES)
def test_what_is_said_of(what):
  text, line = _LINES[what]
  assert gin_texts.said(text) == line


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
  assert gin_texts.said(gin_texts.GOOD, flag) == _FLAGS[flag]


@pytest.mark.parametrize('value', ['10 ** 99 ** 9', '(-8) ** 0.5', '1 / 0'])
def test_numbers_that_nobody_can_write_are_not_computed(value):
  line = gin_texts.said(gin_texts.replaced('STEPS = 4', f'STEPS = {value}'))
  assert line.startswith(
    f'a.gin:3: not gin: STEPS = {value}; values are Python'
  )


def test_flags_bind_and_the_last_one_counts():
  flags = ['--gin.STEPS=5', '--gin_bindings=STEPS = 6', '--gin.STEPS=7']
  flags += ['--gin.eval/mine.points.seed=2', "--gin.Experiment.strategy='auto'"]
  loaded = gin_texts.load(gin_texts.GOOD, *flags)
  assert loaded.experiment.steps == 7
  assert gin.query_parameter('eval/mine.points.seed') == 2


def test_words_after_two_dashes_are_no_bindings():
  words = ['tftrain', '--gin.A=1', '--', '--gin.B=2']
  found, origins = command_lib.rewritten(words)
  assert found == ['tftrain', '--gin_bindings=A = 1', '--', '--gin.B=2']
  assert origins == {'A = 1': '--gin.A'}


def test_constants_are_no_macros():
  gin.constant('mine.LENGTH', 5)
  try:
    assert gin_texts.load(
      gin_texts.replaced('%STEPS', '%mine.LENGTH').replace('STEPS = 4\n', '')
    )
  finally:
    gin.clear_config(clear_constants=True)
