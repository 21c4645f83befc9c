"""Secrets in gin files: left out of all texts, and asked for again."""

import gin
import pytest

from tests.support import gin_texts
from tftrain import errors
from tftrain.config import loader


def test_secrets_are_left_out_and_asked_for_again(tmp_path):
  secret = gin_texts.replaced('RATE = 0.01', "RATE = 0.01\nWORD = 'sesame'")
  secret += 'mine.make_task.password = %WORD\n'
  loaded = gin_texts.load(secret)
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
  gin_texts.load(secret.replace('sesame', 'open'))
  loader.check_same(tmp_path / 'run')
  gin.clear_config()
  with pytest.raises(errors.ConfigError) as raised:
    loader.load([str(saved)])
  assert "give it anew, as --gin.WORD='...'" in str(raised.value)
  gin.clear_config()
  loader.load([str(saved)], ["WORD = 'open'"])


def test_names_that_only_look_like_secrets_stay(tmp_path):
  text = gin_texts.replaced(
    'width: int = 8',
    'pad_token=None, key=None, sort_key=None',
    gin_texts.MODULE,
  )
  (tmp_path / 'mine.py').write_text(text.format(name='mine'))
  names = ('pad_token', 'key', 'sort_key')
  gin_texts.load(
    gin_texts.GOOD + ''.join(f"mine.make_task.{n} = 'a'\n" for n in names)
  )
  saved = loader.texts()['config.gin']
  for name in names:
    assert f"make_task.{name} = 'a'" in saved
