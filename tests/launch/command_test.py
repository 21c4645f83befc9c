"""The command line: gin files, flags, modes and exit codes."""

import json

import numpy as np
import pytest

from tests.support import small_tasks

_GOOD = """
import tests.support.recipes

STEPS = 4

Experiment.task = @recipes.make_task
Experiment.train_data = @recipes.train_data
Experiment.eval_data = @recipes.test_data
Experiment.steps = %STEPS
Experiment.export = False
recipes.make_task.optimizer = @Adam
Adam.learning_rate = 0.01
"""


def gin_file(tmp_path, text):
  path = tmp_path / 'recipe.gin'
  path.write_text(text)
  return path


def with_line(line):
  return _GOOD + line + '\n'


# What is wrong: (the file's text, what the one line must say).
_MISTAKES = {
  'unknown parameter': (
    with_line('Experiment.log_evry = 3'),
    ["recipe.gin:13: Experiment has no parameter 'log_evry'", "'log_every'"],
  ),
  'unknown name': (
    with_line('Experimnt.log_every = 3'),
    ["recipe.gin:13: no configurable is called 'Experimnt'", "'Experiment'"],
  ),
  'unknown reference': (
    with_line('recipes.make_task.width = @Adamm'),
    ["recipe.gin:13: no configurable is called 'Adamm'", "'Adam'"],
  ),
  'parameter of an optimizer': (
    with_line('Adam.learning_rte = 0.1'),
    ["recipe.gin:13: Adam has no parameter 'learning_rte'", 'learning_rate'],
  ),
  'wrong type': (
    with_line("Experiment.keep = 'three'"),
    ["recipe.gin:13: Experiment.keep = 'three' is str, expected int"],
  ),
  'wrong type in a macro': (
    _GOOD.replace('STEPS = 4', "STEPS = 'four'"),
    ["Experiment.steps = 'four' is str, expected int or None"],
  ),
  'a float for a rate given as text': (
    with_line("Adam.beta_1 = 'fast'"),
    ["recipe.gin:13: Adam.beta_1 = 'fast' is str, expected float"],
  ),
  'unquoted text': (
    with_line('Experiment.strategy = mirrored'),
    ["recipe.gin:13: 'mirrored' is not a gin value", 'quotes: "mirrored"'],
  ),
  'lower-case true': (
    with_line('Experiment.export = true'),
    ["recipe.gin:13: 'true' is not a gin value; use True"],
  ),
  'unused macro': (
    with_line('STEPZ = 3'),
    ['recipe.gin:13: nothing reads the macro STEPZ'],
  ),
  'unknown macro': (
    with_line('Experiment.keep = %KEEP'),
    ['recipe.gin:13: no macro is called %KEEP'],
  ),
  'unused binding': (
    with_line('SGD.momentum = 0.9'),
    ['recipe.gin:13: SGD.momentum has no effect', '@SGD'],
  ),
  'missing module': (
    'import tests.recipies\n' + _GOOD,
    ["recipe.gin:1: no module named 'tests.recipies'"],
  ),
  'missing include': (
    "include 'tests/recipez.gin'\n" + _GOOD,
    ["recipe.gin:1: no file 'tests/recipez.gin'"],
  ),
  'required value missing': (
    _GOOD.replace('Experiment.task = @recipes.make_task', ''),
    ['required: Experiment.task; set it', '--gin.Experiment.task=...'],
  ),
  'neither steps nor epochs': (
    _GOOD.replace('Experiment.steps = %STEPS', '').replace('STEPS = 4', ''),
    ['either steps or epochs'],
  ),
}


@pytest.mark.parametrize('name', _MISTAKES)
def test_a_mistake_is_one_line_with_exit_code_2(name, commands, tmp_path):
  text, fragments = _MISTAKES[name]
  path = gin_file(tmp_path, text)
  model_dir = tmp_path / 'run'
  result = commands.run(f'--gin_file={path}', f'--model_dir={model_dir}')
  assert result.code == 2, result
  for fragment in fragments:
    assert fragment in result.error
  assert not model_dir.exists()


def test_a_good_file_trains_and_bindings_override_it(commands, tmp_path):
  path = gin_file(tmp_path, _GOOD)
  arguments = (f'--gin_file={path}', f'--model_dir={tmp_path / "run"}')
  result = commands.run(*arguments, '--gin_bindings=Experiment.steps = 6')
  assert result.code == 0, result
  assert 'Done: step 6 of 6' in result.stdout
  names = {p.name for p in (tmp_path / 'run').iterdir()}
  assert names >= {
    'config.gin',
    'operative_config.gin',
    'run.json',
    'metrics.jsonl',
    'timing.jsonl',
    'checkpoints',
    'train',
    'eval',
  }
  run = json.loads((tmp_path / 'run' / 'run.json').read_text())
  assert run['finished'] == {'last_step': 6, 'step': 6}


def test_a_gin_file_may_include_another_from_anywhere(commands, tmp_path):
  path = gin_file(
    tmp_path, "include 'configs/digits.gin'\nExperiment.keep = 1\n"
  )
  result = commands.run(
    f'--gin_file={path}',
    f'--model_dir={tmp_path / "run"}',
    '--gin_bindings=STEPS = 2',
    '--gin_bindings=Experiment.export = False',
    cwd=tmp_path,
  )
  assert result.code == 0, result
  assert 'Path not found' not in result.stderr
  config = (tmp_path / 'run' / 'config.gin').read_text()
  assert 'Experiment.keep = 1' in config


@pytest.mark.slow
def test_files_are_found_in_the_search_paths(commands, tmp_path):
  (tmp_path / 'mine').mkdir()
  gin_file(tmp_path / 'mine', _GOOD)
  arguments = ('--gin_file=recipe.gin', f'--model_dir={tmp_path / "run"}')
  lost = commands.run(*arguments)
  assert lost.code == 2 and "no file 'recipe.gin'" in lost.stderr
  found = commands.run(*arguments, f'--gin_search_paths={tmp_path / "mine"}')
  assert found.code == 0, found


def contents(directory):
  return {
    str(p.relative_to(directory)): (p.read_bytes(), p.stat().st_mtime_ns)
    for p in directory.rglob('*')
    if p.is_file()
  }


def test_the_second_run_touches_nothing_and_more_steps_go_on(
  commands, tmp_path
):
  path = gin_file(tmp_path, _GOOD)
  run = tmp_path / 'run'
  arguments = (f'--gin_file={path}', f'--model_dir={run}')
  assert commands.run(*arguments).code == 0
  before = contents(run)
  again = commands.run(*arguments)
  assert again.code == 0
  assert 'Already at step 4 of 4; nothing to do.' in again.stdout
  assert contents(run) == before
  more = commands.run(*arguments, '--gin_bindings=STEPS = 8')
  assert 'Done: step 8 of 8.' in more.stdout, more
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [4, 4, 8, 8]


def test_another_configuration_in_model_dir_is_refused(commands, tmp_path):
  path = gin_file(tmp_path, _GOOD)
  arguments = (f'--gin_file={path}', f'--model_dir={tmp_path / "run"}')
  assert commands.run(*arguments).code == 0
  before = contents(tmp_path / 'run')
  other = commands.run(*arguments, '--gin_bindings=Adam.learning_rate = 0.5')
  assert other.code == 2
  assert 'Adam.learning_rate: 0.01 -> 0.5' in other.stderr
  assert 'new model_dir' in other.stderr
  assert contents(tmp_path / 'run') == before


@pytest.mark.slow
def test_what_only_free_parameters_refer_to_may_change(commands, tmp_path):
  path = gin_file(tmp_path, _GOOD)
  run = tmp_path / 'run'
  arguments = [f'--gin_file={path}', f'--model_dir={run}', '--mode=train']
  stop = '--gin_bindings=Experiment.early_stop = @EarlyStopping()'
  metric = "--gin_bindings=EarlyStopping.metric = 'train/loss'"
  arguments += [stop, metric]
  patience = '--gin_bindings=EarlyStopping.patience = '
  assert commands.run(*arguments, patience + '7').code == 0
  more = '--gin_bindings=STEPS = 8'
  assert commands.run(*arguments, patience + '9', more).code == 0
  # The optimizer of the task is what was learned with, whoever else has it.
  other = commands.run(*arguments, '--gin_bindings=Adam.learning_rate = 0.5')
  assert other.code == 2 and 'Adam.learning_rate' in other.error


_FLAGS = {
  '--model_dir=/nowhere': '--gin_file is missing',
  '--gin_file=configs/digits.gin': '--model_dir is missing',
  '--gin_file=configs/digit.gin --model_dir=/x': 'digits.gin',
  '--gin_file=a --model_dir=b --mode=tran': 'tran',
  '--gin_file=a --model_dir=b --stratgy=x': 'stratgy',
  '--gin_file=a --model_dir=b Adam.x=1': "--gin_bindings='Adam.x=1'",
}


@pytest.mark.parametrize('arguments', _FLAGS)
def test_wrong_flags(arguments, commands):
  result = commands.run(*arguments.split())
  assert result.code == 2, result
  assert _FLAGS[arguments] in result.stderr.splitlines()[-1]


def test_modes_on_a_trained_run(commands, tmp_path):
  path = gin_file(tmp_path, _GOOD)
  arguments = (f'--gin_file={path}', f'--model_dir={tmp_path / "run"}')
  early = commands.run(*arguments, '--mode=eval')
  assert early.code == 2 and 'no checkpoint' in early.stderr
  trained = commands.run(*arguments, '--mode=train', '--run_eagerly')
  assert trained.code == 0, trained
  assert 'eval' not in (tmp_path / 'run' / 'metrics.jsonl').read_text()
  evaluated = commands.run(*arguments, '--mode=eval')
  assert evaluated.code == 0 and 'eval/test/accuracy' in evaluated.stdout
  exported = commands.run(*arguments, '--mode=export')
  assert exported.code == 0, exported
  assert (tmp_path / 'run' / 'export' / '4' / 'saved_model.pb').exists()


@pytest.mark.slow
def test_predict_writes_a_line_for_each_row_of_a_file(commands, tmp_path):
  path = gin_file(tmp_path, _GOOD)
  arguments = [f'--gin_file={path}', f'--model_dir={tmp_path / "run"}']
  assert commands.run(*arguments, '--mode=train').code == 0
  x, _ = small_tasks.arrays(21)
  np.save(tmp_path / 'x.npy', x)
  arguments.append('--mode=predict')
  assert '--input is missing' in commands.run(*arguments).error
  arguments += [f'--input={tmp_path / "x.npy"}']
  arguments += [f'--output={tmp_path / "y.jsonl"}']
  predicted = commands.run(*arguments)
  assert predicted.code == 0, predicted
  assert 'Predicted 21 examples with the checkpoint of step 4' in (
    predicted.stdout
  )
  lines = (tmp_path / 'y.jsonl').read_text().splitlines()
  assert [json.loads(line)['index'] for line in lines] == list(range(21))
  assert len(json.loads(lines[0])['outputs']) == 3
  # Other rows: what is there is not of them.
  np.save(tmp_path / 'x.npy', x + 1)
  again = commands.run(*arguments)
  assert again.code == 2 and 'y.jsonl was made of other' in again.error


def test_inspect_data_needs_no_model_dir(commands, tmp_path):
  path = gin_file(tmp_path, _GOOD)
  result = commands.run(f'--gin_file={path}', '--mode=inspect_data')
  assert result.code == 0, result
  assert 'eval/test:' in result.stdout and 'slowest' in result.stdout


def test_local_devices_and_strategy(commands, tmp_path):
  path = gin_file(tmp_path, _GOOD)
  arguments = (f'--gin_file={path}', f'--model_dir={tmp_path / "run"}')
  result = commands.run(*arguments, '--local_devices=2', '--strategy=mirrored')
  assert result.code == 0, result
  run = json.loads((tmp_path / 'run' / 'run.json').read_text())
  assert run['replicas'] == 2
