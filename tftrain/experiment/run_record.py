"""Run record: code, data, versions and end of a run, in run.json."""

from collections.abc import Mapping
import hashlib
import json
import math
import os
import pathlib
import signal
import subprocess
import time
from typing import Any

from tftrain.platform import files
from tftrain.platform import hashing
from tftrain.platform import jsonl

NAME = 'run.json'

_GIT_SECONDS = 5.0

# Longer values of a fingerprint, as JSON, are replaced by a digest to keep
# run.json readable.
_LONGEST_FACT = 200

# Untracked files that match are code, too; other files may be data.
_CODE_FILES = (':(top)*.py', ':(top)*.gin')


def read_record(model_dir: pathlib.Path) -> dict[str, Any]:
  """Returns the contents of run.json; {} if it is missing or damaged."""
  path = model_dir / NAME
  try:
    with files.convert_os_errors(path):
      text = path.read_text(encoding='utf-8') if path.exists() else '{}'
    record = json.loads(text)
  except ValueError:
    record = {}
  return record if isinstance(record, dict) else {}


def newest_scalars(model_dir: pathlib.Path) -> dict[str, float]:
  """Returns the last value of each metric by full name, without NaN."""
  scalars = {}
  for values in jsonl.read(model_dir / 'metrics.jsonl'):
    source = values.pop('source')
    values.pop('step')
    scalars.update({f'{source}/{k}': float(v) for k, v in values.items()})
  return {k: v for k, v in scalars.items() if not math.isnan(v)}


def code_version(
  directory: str | os.PathLike[str] = '.', seconds: float = _GIT_SECONDS
) -> dict[str, Any] | None:
  """Returns the git commit, a dirty flag and a digest of the changes.

  The result is None without a repository or git, or without an answer within
  `seconds`. The changes themselves are not kept: they may contain secrets.
  """
  deadline = time.monotonic() + seconds
  try:
    commit = _git(directory, deadline, 'rev-parse', '--verify', 'HEAD')
    changed = _git(
      directory,
      deadline,
      *('diff', '--full-index', '--no-ext-diff', '--no-textconv', 'HEAD'),
    )
    others = (
      'ls-files',
      '--others',
      '--exclude-standard',
      '-z',
      '--',
      *_CODE_FILES,
    )
    new = _git(directory, deadline, *others)
    digest = hashlib.sha256(changed)
    for name in sorted(filter(None, new.split(b'\0'))):
      content = (pathlib.Path(directory) / os.fsdecode(name)).read_bytes()
      digest.update(b'\0%b\0%d\0%b' % (name, len(content), content))
  except (OSError, subprocess.SubprocessError):
    return None
  dirty = bool(changed or new)
  return {
    'commit': commit.decode().strip(),
    'dirty': dirty,
    'diff_sha256': digest.hexdigest() if dirty else None,
  }


def data_fingerprints(
  fingerprints: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
  """Returns fingerprints by source (`train`, ...), long values as digests."""
  return {
    source: {name: _shortened(value) for name, value in fingerprint.items()}
    for source, fingerprint in fingerprints.items()
  }


def _shortened(value: Any) -> Any:
  text = json.dumps(value, sort_keys=True)
  if len(text) <= _LONGEST_FACT:
    return json.loads(text)
  return f'sha256:{hashing.text_digest(text)}'


def _git(
  directory: str | os.PathLike[str], deadline: float, *words: str
) -> bytes:
  """Returns the output of a git command that neither writes nor prompts."""
  quiet = {'GIT_OPTIONAL_LOCKS': '0', 'GIT_TERMINAL_PROMPT': '0'}
  command = ['git', *words]
  process = subprocess.Popen(
    command,
    cwd=directory,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    env={**os.environ, **quiet},
    start_new_session=True,
  )
  with process:
    try:
      printed, _ = process.communicate(
        timeout=max(deadline - time.monotonic(), 0.0)
      )
    except BaseException:  # kills its children, too: they hold the pipe
      os.killpg(process.pid, signal.SIGKILL)
      raise
  if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, command)
  return printed
