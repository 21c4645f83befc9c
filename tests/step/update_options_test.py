"""Options of Update: wrong types and combinations are refused by name."""

import keras
import pytest

from tests.support import error_lines
from tests.support import numpy_network
from tests.support import small_tasks
import tftrain
from tftrain import errors


@pytest.mark.parametrize(
  ('name', 'value', 'advice'),
  [
    ('freeze', 3, "= 3; give a pattern such as 'dense/kernel', or None"),
    ('no_decay', b'bias', "= b'bias'; give a pattern"),
    ('remat', ['a'], "= ['a']; give a pattern"),
    ('rates', {3: 1.0}, '= {3: 1.0}; give {pattern: factor}'),
    ('rates', {None: 1.0}, '= {None: 1.0}; give {pattern: factor}'),
    ('rates', ['a'], "= ['a']; give {pattern: factor}"),
    ('rates', {'a': '2'}, "the factor of 'a' must be above 0"),
    ('freeze', '', "= ''; an empty pattern matches everything; leave it out"),
    ('no_decay', '', 'an empty pattern'),
    ('remat', '', 'an empty pattern'),
    ('rates', {'': 0.1}, "= {'': 0.1}; an empty pattern"),
    ('freeze', '(', "'(' is no regular expression"),
    ('jit', 'yes', "= 'yes'; give 'auto', 'off', 'block' or 'step'"),
    ('jit', True, "= True; give 'auto', 'off', 'block' or 'step'"),
    ('sync_batch_norm', 1, '= 1; give True or False'),
    ('accumulate', True, '= True; give a whole number'),
    ('accumulate', 2.0, '= 2.0; give a whole number'),
  ],
)
def test_options_of_the_wrong_type_are_named(name, value, advice):
  with error_lines.refused(errors.ConfigError, f'Update.{name}', advice):
    tftrain.Update(**{name: value})


def test_options_of_the_right_type_are_taken():
  update = tftrain.Update(
    accumulate=2, freeze='a', rates={'b': 2}, remat='.', jit='step'
  )
  assert update.patterns() == [('freeze', 'a'), ('remat', '.'), ('rates', 'b')]


@pytest.mark.parametrize(
  'update, given',
  [
    ({'freeze': 'embeding'}, "'embeding'"),
    ({'rates': {'kernel': 0.5, 'embeding': 2.0}}, "'embeding'"),
    ({'no_decay': 'embeding'}, "'embeding'"),
    ({'remat': 'embeding'}, "'embeding'"),
    ({'freeze': 'dense('}, "'dense('"),
    ({'rates': {'dense(': 1.0}}, "'dense('"),
    ({'rates': {'kernel': -0.5}}, '-0.5'),
    ({'accumulate': 0}, '0'),
    ({'accumulate': 1.5}, '1.5'),
    ({'clip_norm': 0.0}, '0.0'),
    ({'clip_norm': -1.0}, '-1.0'),
    ({'clip_value': 0.0}, '0.0'),
    ({'clip_adaptive': -0.1}, '-0.1'),
    ({'ema': 0.0}, '0.0'),
    ({'ema': 1.0}, '1.0'),
    ({'ema': -0.1}, '-0.1'),
    ({'loss_scale': 'dynamc'}, "'dynamc'"),
    ({'loss_scale': 0.0}, '0.0'),
    ({'freeze': 'model/'}, 'model/'),
  ],
)
def test_options_that_make_no_sense(update, given):
  make = lambda: small_tasks.supervised(keras.optimizers.AdamW(0.01))
  numpy_network.refuses((*update, given), update, make)


@pytest.mark.parametrize(
  'in_keras, ours',
  [
    ({'clipnorm': 1.0}, 'clip_norm'),
    ({'global_clipnorm': 1.0}, 'clip_norm'),
    ({'clipvalue': 1.0}, 'clip_value'),
    ({'gradient_accumulation_steps': 2}, 'accumulate'),
    ({'use_ema': True}, 'ema'),
  ],
)
def test_what_keras_would_do_on_its_own_side(in_keras, ours):
  make = lambda: small_tasks.supervised(keras.optimizers.SGD(0.1, **in_keras))
  numpy_network.refuses(
    (*in_keras, f'Update({ours}='), {}, make, strategy='mirrored'
  )
