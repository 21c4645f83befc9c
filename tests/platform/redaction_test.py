"""Redaction: secrets are left out of run.json."""

import pytest

from tftrain.platform import redaction


def test_secrets_are_left_out_of_run_json():
  argv = ['run', '--api_key=x1', '--token', 'x2', '--steps=3', '--max_tokens=4']
  argv += ["--gin_bindings=hub.load.password = 'x3'", '--keyboard=5', 'plain']
  clean = redaction.redacted_argv(argv)
  assert not any(secret in ' '.join(clean) for secret in ('x1', 'x2', 'x3'))
  for word in ('run', '--steps=3', '--max_tokens=4', '--keyboard=5', 'plain'):
    assert word in clean


@pytest.mark.parametrize(
  'name', ['password', 'db_passwd', 'passphrase', 'client_secret', 'credential']
)
def test_passwords_are_secret_in_configurations_and_on_command_lines(name):
  assert redaction.is_secret(f'load/hub.{name}')
  words = redaction.redacted_argv([f'--{name}=abc', f'--{name}', 'def'])
  assert words == [f'--{name}=[redacted]', f'--{name}', '[redacted]']


def test_keys_and_tokens_are_secret_in_configurations_with_a_second_word():
  names = ['token', 'hf_token', 'api_key', 'label_key', 'pad_token', 'key']
  assert [redaction.is_secret(name) for name in names] == [
    True, True, True, False, False, False
  ]  # fmt: skip
