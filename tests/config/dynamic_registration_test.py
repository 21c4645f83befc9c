"""Dynamic registration: gin files that import undecorated names."""

import gin
import pytest

from tests.support import gin_texts
from tftrain import errors
from tftrain.config import loader

_PLAIN = gin_texts.MODULE.replace("@gin.register(module='{name}')\n", '')


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
      gin_texts.load(gin_texts.replaced(old, new, gin_texts.DYNAMIC))
    assert str(raised.value) == line
  else:
    assert (
      gin_texts.said(gin_texts.replaced(old, new, gin_texts.DYNAMIC)) == line
    )


def test_dynamic_registration_trains_and_its_text_can_be_read_again(
  plain, tmp_path
):
  loaded = gin_texts.load(gin_texts.DYNAMIC, '--gin.STEPS=3')
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
  gin_texts.load(gin_texts.DYNAMIC, '--gin.STEPS=5')
  loader.check_same(tmp_path / 'run')
  gin.clear_config()
  gin_texts.load(gin_texts.DYNAMIC, '--gin.points.batch_size=4')
  with pytest.raises(errors.RunDirectoryError, match='batch_size: 8 -> 4'):
    loader.check_same(tmp_path / 'run')


def test_classic_files_and_dynamic_ones_include_each_other(plain, tmp_path):
  (tmp_path / 'rate.gin').write_text('RATE = 0.5\nAdam.learning_rate = %RATE\n')
  text = gin_texts.replaced(
    'keras.optimizers.Adam.learning_rate = 0.01',
    "include 'rate.gin'",
    gin_texts.DYNAMIC,
  )
  gin_texts.load(text)
  assert gin.query_parameter('Adam.learning_rate') is not None
  assert gin.query_parameter('%RATE') == 0.5
