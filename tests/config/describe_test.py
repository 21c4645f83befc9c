"""The tree of a recipe: each value and its source."""

import json

from tests.support import gin_texts
from tests.support import paths
from tftrain.config import loader


def test_the_tree_says_where_each_value_comes_from():
  loaded = gin_texts.load(
    gin_texts.GOOD, '--gin.RATE=0.5', '--gin_bindings=Experiment.keep = 1'
  )
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
  loaded = loader.load_all([str(paths.ROOT / 'configs' / 'digits.gin')])
  lines = loaded.described().splitlines()
  assert lines[0] == 'Experiment'
  (rate,) = [line for line in lines if 'learning_rate = 0.001' in line]
  assert rate.startswith('      learning_rate = 0.001 ')
  assert rate.endswith('adam.gin:10)') and '(%LEARNING_RATE, ' in rate
  assert "  eval_data = {'test': @digits.test_data}" in loaded.described()
  assert all(len(line.split('  ')) > 1 for line in lines[1:])


def test_steps_of_epochs_need_the_data():
  text = gin_texts.replaced('steps = %STEPS', 'epochs = %STEPS')
  found = json.loads(gin_texts.load(text).described('json'))
  assert found['steps'] == 34  # 4 epochs of 67 examples in eights
