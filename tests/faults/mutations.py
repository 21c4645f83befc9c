"""Takes the guards of tftrain away, one at a time: does a test go red?

  python -m tests.faults.mutations [words in the name of a guard]

Each guard is removed in a copy of the repository, and the test that is there
for it runs on that copy. Prints a line for each and caught/total; exits with 1
if a guard can go unnoticed.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

_ROOT = pathlib.Path(__file__).parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Guard:
  """What is taken away, and who must notice.

  Attributes:
    what: What it guards against.
    file: Below tftrain/.
    old: Its text, which is there once.
    new: What stands there without it.
    test: The test's path and name, as pytest takes them.
  """

  what: str
  file: str
  old: str
  new: str
  test: str


# Without its guard a test may hang; that is noticed, too.
_OPTIONS = '-x -q -W ignore --timeout=60 --timeout-method=thread'.split()

_CHECKPOINTS = 'tests/checkpoints_test.py::'
_FAULTS = 'tests/faults/'

GUARDS = (
  Guard(
    'a save is written aside',
    'files.py',
    "staged = final.with_name(f'{STAGING}{final.name}-{uuid.uuid4().hex}')",
    'staged = final',
    f'{_FAULTS}disk_test.py::test_death_in_a_save_leaves_the_old_or_the_new',
  ),
  Guard(
    'digests are compared',
    'bundles.py',
    "if list(array.shape) != shape or sha256(array) != values[name]['sha256']:",
    'if False:',
    f'{_CHECKPOINTS}test_a_damaged_checkpoint_is_passed_over',
  ),
  Guard(
    'no start from step 0 beside damaged checkpoints',
    'checkpoints.py',
    'if causes and step is None:',
    'if False:',
    f'{_CHECKPOINTS}test_never_a_silent_start_from_zero',
  ),
  Guard(
    'a lack of descriptors is no damage',
    'bundles.py',
    'return error.errno in _PASSING',
    'return False',
    f'{_FAULTS}sweep_test.py::'
    'test_a_good_checkpoint_outlives_a_lack_of_descriptors',
  ),
  Guard(
    'durable: contents are synced',
    'files.py',
    '    if durable:\n      sync(staged)\n',
    '',
    f'{_FAULTS}power_test.py::test_a_power_cut_loses_no_durable_checkpoint',
  ),
  Guard(
    'durable: directories are synced',
    'files.py',
    'for parent in final.absolute().parents[:3]:',
    'for parent in final.absolute().parents[:0]:',
    f'{_FAULTS}power_test.py::'
    'test_a_power_cut_does_not_lose_the_first_durable_checkpoint',
  ),
  Guard(
    'leftovers are removed',
    'files.py',
    "for path in sorted(parent.glob(f'{STAGING}*')):",
    'for path in ():',
    f'{_CHECKPOINTS}test_stale_temporaries_go_and_nothing_else',
  ),
  Guard(
    'only our own leftovers are removed',
    'files.py',
    "for path in sorted(parent.glob(f'{STAGING}*')):",
    "for path in sorted(parent.glob('[!c]*')):",
    f'{_CHECKPOINTS}test_stale_temporaries_go_and_nothing_else',
  ),
  Guard(
    'the last finite checkpoint is kept',
    'retention.py',
    'kept = {*steps[-self.last :], *finite[-1:]}',
    'kept = {*steps[-self.last :]}',
    f'{_CHECKPOINTS}test_the_newest_are_kept_and_the_last_finite_one',
  ),
  Guard(
    'one trainer for a directory',
    'files.py',
    'fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)',
    'pass',
    f'{_CHECKPOINTS}test_one_model_dir_has_one_trainer',
  ),
  Guard(
    'a checkpoint of another run is refused',
    'checkpoints.py',
    '    self._check(path, manifest)\n',
    '',
    f'{_CHECKPOINTS}test_checkpoints_of_another_run_are_refused',
  ),
  Guard(
    'half a line is taken back',
    'disks.py',
    'os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)',
    'pass',
    f'{_FAULTS}disk_test.py::'
    'test_a_disk_that_fills_up_within_a_line_keeps_none_of_it',
  ),
  Guard(
    'lines after the restored step are taken back',
    'summaries.py',
    'files.keep_lines(self._metrics, lambda line: _step_of(line) <= step)',
    'pass',
    'tests/outputs_test.py::test_lines_after_the_restored_step_are_taken_back',
  ),
  Guard(
    'a stop is seen within a block',
    'loops.py',
    'return (done < n) & well & (counters.stop.read_value() == RUN)',
    'return (done < n) & well',
    'tests/loop_test.py::test_a_stop_leaves_a_long_block_within_a_step',
  ),
  Guard(
    'a step that is not finite changes nothing',
    'appliers.py',
    'finite = tf.math.is_finite(gradients.loss + gradients.norm)',
    'finite = tf.math.is_finite(gradients.loss) | True',
    'tests/errors_test.py::'
    'test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint',
  ),
)


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
    shutil.copytree(_ROOT, copy, ignore=ignored)
    chosen = [g for g in GUARDS if ' '.join(sys.argv[1:]) in g.what]
    for guard in chosen:
      noticed = is_noticed(guard, copy)
      caught += noticed
      print(f'{"caught" if noticed else "MISSED"}  {guard.what}', flush=True)
  print(f'{caught}/{len(chosen)}')
  sys.exit(caught < len(chosen))


if __name__ == '__main__':
  main()
