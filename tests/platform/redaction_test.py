"""Redaction: secrets are left out of run.json."""

from tftrain.platform import redaction


def test_secrets_are_left_out_of_run_json():
  argv = ['run', '--api_key=x1', '--token', 'x2', '--steps=3', '--max_tokens=4']
  argv += ["--gin_bindings=hub.load.password = 'x3'", '--keyboard=5', 'plain']
  clean = redaction.redacted_argv(argv)
  assert not any(secret in ' '.join(clean) for secret in ('x1', 'x2', 'x3'))
  for word in ('run', '--steps=3', '--max_tokens=4', '--keyboard=5', 'plain'):
    assert word in clean
