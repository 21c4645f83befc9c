"""Takes the guards of tftrain away, one at a time: does a test go red?

  python -m tests.faults.mutations [the beginnings of guards' names ...]

Each guard is removed in a copy of the repository, and the test that is there
for it runs on that copy. Prints a line for each and caught/total; exits with 1
if a guard can go unnoticed.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from tests.faults import guards
from tests.support import paths

# Without its guard a test may hang; that is noticed, too.
_OPTIONS = '-x -q -W ignore --timeout=60 --timeout-method=thread'.split()


def is_noticed(guard, copy):
  """Whether the guard's test fails on a copy that lacks it."""
  path = copy / 'tftrain' / guard.file
  whole = path.read_text(encoding='utf-8')
  if whole.count(guard.old) != 1:
    raise SystemExit(
      f'{guard.file} holds the guard {guard.what!r} {whole.count(guard.old)} '
      'times; mend tests/faults/mutations.py'
    )
  path.write_text(whole.replace(guard.old, guard.new), encoding='utf-8')
  try:
    done = subprocess.run(
      [sys.executable, '-m', 'pytest', *_OPTIONS, guard.test],
      cwd=copy,
      env={**os.environ, 'PYTHONPATH': str(copy)},
      capture_output=True,
      timeout=300,
      check=False,
    )
  finally:
    path.write_text(whole, encoding='utf-8')
  # 1 is a test that failed; anything else is no answer.
  if done.returncode not in (0, 1):
    raise SystemExit(done.stdout.decode(errors='replace'))
  return done.returncode == 1


def main():
  caught = 0
  with tempfile.TemporaryDirectory() as directory:
    copy = pathlib.Path(directory) / 'tftrain'
    ignored = shutil.ignore_patterns('.git', '.venv', '__pycache__')
    shutil.copytree(paths.ROOT, copy, ignore=ignored)
    begins = tuple(sys.argv[1:]) or ('',)
    chosen = [g for g in guards.GUARDS if g.what.startswith(begins)]
    for guard in chosen:
      noticed = is_noticed(guard, copy)
      caught += noticed
      print(f'{"caught" if noticed else "MISSED"}  {guard.what}', flush=True)
  print(f'{caught}/{len(chosen)}')
  sys.exit(caught < len(chosen))


if __name__ == '__main__':
  main()
