"""Every operation on the disk fails once, or is the last before death.

Needs no privilege: the faults are put into `tftrain.platform._filesystem`.
What TensorFlow writes itself does not come by there; see sweep_test.py.
"""

import errno
import itertools
import resource

import pytest

from tests.faults import faulty
import tftrain
from tftrain import errors
from tftrain.checkpoint import format
from tftrain.platform import _filesystem
from tftrain.platform import files
from tftrain.platform import jsonl
from tftrain.platform import signals as signals_lib

_CODES = [errno.ENOSPC, errno.EIO, errno.EACCES]


@pytest.fixture
def each(tmp_path, monkeypatch):
  """Runs a piece of work with a fault in its 1st, 2nd, ... operation.

  Yields (what failed, what was raised or None, the directory) until no fault
  comes about; the disk is a good one again by then.
  """

  def each(make_disk, prepare, work):
    for n in itertools.count(1):
      directory = tmp_path / str(n)
      directory.mkdir()
      prepare(directory)
      disk = make_disk(n)
      monkeypatch.setattr(files, 'disk', disk)
      raised = None
      try:
        work(directory)
      except (Exception, faulty.Killed, signals_lib.Interrupted) as error:
        raised = error
      monkeypatch.setattr(files, 'disk', _filesystem.Disk())
      if disk.hit is None:
        assert raised is None
        assert n > 1, 'nothing went through the disk'
        return
      yield f'{n} {disk.hit}', raised, directory

  return each


def _failing(code):
  return lambda n: faulty.FaultyDisk(n, code)


def _dying(torn):
  return lambda n: faulty.DyingDisk(n, torn)


def _save(directory, step, **options):
  checkpointer = tftrain.Checkpointer(
    directory, faulty.Value(step), keep=1, **options
  )
  checkpointer.save()
  checkpointer.wait()
  return checkpointer


def _saved_at_10(directory):
  _save(directory, 10)
  checkpoints_dir = directory / 'checkpoints'
  (checkpoints_dir / 'notes.txt').write_text('mine\n')
  # As an earlier kill leaves it, so that tidying up is swept, too.
  (checkpoints_dir / '.tmp-old').mkdir()
  (checkpoints_dir / '.tmp-old/half').write_text('x')


def _save_20(directory):
  _save(directory, 20)


def _leftovers(directory):
  return [path.name for path in directory.glob('**/.tmp-*')]


def _check_restored(what, directory, steps):
  """Before or after; and the next save is as good as any."""
  value = faulty.Value()
  step = tftrain.Checkpointer(directory, value).restore()
  assert step in steps, f'{what}: restored {step}, not one of {steps}'
  assert value.is_of(step), f'{what}: restored other values'
  _save(directory, step + 10)
  found = format.committed_steps(directory / 'checkpoints')
  assert found == [step + 10], what
  assert not _leftovers(directory), what
  notes = directory / 'checkpoints/notes.txt'
  assert notes.read_text() == 'mine\n', what


@pytest.mark.parametrize('code', _CODES)
def test_a_save_that_fails_says_so_and_leaves_what_was(code, each):
  for what, raised, directory in each(_failing(code), _saved_at_10, _save_20):
    kinds = (errors.CheckpointError, errors.RunDirectoryError)
    assert raised is None or isinstance(raised, kinds), f'{what}: {raised!r}'
    steps = format.committed_steps(directory / 'checkpoints')
    if isinstance(raised, errors.CheckpointError):
      assert f'is at step {steps[-1]}.' in str(raised), what
    # A save that returned is there.
    _check_restored(what, directory, [steps[-1]] if raised else [20])


@pytest.mark.parametrize('code', _CODES)
def test_the_same_checkpointer_goes_on_after_a_failure(
  code, tmp_path, monkeypatch
):
  for n in itertools.count(1):
    directory = tmp_path / str(n)
    directory.mkdir()
    _saved_at_10(directory)
    value = faulty.Value(20)
    checkpointer = tftrain.Checkpointer(directory, value, keep=1)
    disk = faulty.FaultyDisk(n, code)
    monkeypatch.setattr(files, 'disk', disk)
    try:
      checkpointer.save()
      checkpointer.wait()
    except errors.Error:
      pass
    monkeypatch.setattr(files, 'disk', _filesystem.Disk())
    on_disk = format.committed_steps(checkpointer.directory)
    assert checkpointer.steps() == on_disk, 'it believes what is not so'
    value.write_state(faulty.Value(30).read_state())
    checkpointer.save()
    checkpointer.wait()
    _check_restored(f'{n} {disk.hit}', directory, [30])
    if disk.hit is None:
      break


@pytest.mark.parametrize('torn', [False, True], ids=['whole', 'torn'])
def test_death_in_a_save_leaves_the_old_or_the_new(torn, each):
  for what, _, directory in each(_dying(torn), _saved_at_10, _save_20):
    # What was there before, and one of this save.
    top = list(directory.glob('checkpoints/.tmp-*'))
    assert len(top) <= 2, f'{what}: {top}'
    _check_restored(what, directory, [10, 20])


def _text(directory):
  (directory / 'a.txt').write_text('old')


def _write_text(directory):
  files.write_text(directory / 'a.txt', 'new')


@pytest.mark.parametrize('code', _CODES)
def test_a_text_that_cannot_be_written_is_the_old_one(code, each):
  for what, raised, directory in each(_failing(code), _text, _write_text):
    assert isinstance(raised, OSError), what
    assert (directory / 'a.txt').read_text() == 'old', what
    assert not _leftovers(directory), what


def test_death_leaves_a_text_old_or_new(each):
  for what, _, directory in each(_dying(True), _text, _write_text):
    assert (directory / 'a.txt').read_text() in ('old', 'new'), what
    files.remove_stale(directory)
    assert not _leftovers(directory), what


def _append(directory):
  jsonl.append_line(directory / 'a.txt', 'a line')


@pytest.mark.parametrize('code', _CODES)
def test_a_line_that_cannot_be_appended_leaves_no_trace(code, each):
  for what, raised, directory in each(_failing(code), _text, _append):
    assert isinstance(raised, errors.RunDirectoryError), what
    assert (directory / 'a.txt').read_text() == 'old', what


@pytest.mark.parametrize('room', range(6))
def test_a_disk_that_fills_up_within_a_line_keeps_none_of_it(room, tmp_path):
  path = tmp_path / 'a.txt'
  jsonl.append_line(path, 'first')
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(
    resource.RLIMIT_FSIZE, (path.stat().st_size + room, before[1])
  )
  try:
    with pytest.raises(errors.RunDirectoryError, match='cannot use'):
      jsonl.append_line(path, 'second')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  jsonl.append_line(path, 'third')
  assert path.read_text() == 'first\nthird\n'


def _stale(directory):
  (directory / 'notes.txt').write_text('mine\n')
  for name in ('.tmp-a', '.tmp-b'):
    (directory / name / 'below').mkdir(parents=True)
    (directory / name / 'below' / 'file').write_text('x')
  (directory / '.tmp-c').write_text('x')


@pytest.mark.parametrize('code', _CODES)
def test_what_cannot_be_tidied_now_is_tidied_later(code, each):
  work = files.remove_stale
  for what, raised, directory in each(_failing(code), _stale, work):
    assert raised is None, f'{what}: {raised!r}'
    assert len(list(directory.glob('.tmp-*'))) == 1, what
    files.remove_stale(directory)
    assert faulty.scan(directory) == {'notes.txt': b'mine\n'}, what


@pytest.mark.parametrize('torn', [False, True], ids=['whole', 'torn'])
def test_death_while_tidying_loses_nothing_of_the_user(torn, each):
  for what, _, directory in each(_dying(torn), _stale, files.remove_stale):
    files.remove_stale(directory)
    assert faulty.scan(directory) == {'notes.txt': b'mine\n'}, what


def _nothing(directory):
  del directory


def _make_directory(directory):
  files.make_directory(directory / 'a/b')


@pytest.mark.parametrize('code', _CODES)
def test_a_directory_that_cannot_be_made_is_refused(code, each):
  for what, raised, directory in each(
    _failing(code), _nothing, _make_directory
  ):
    assert isinstance(raised, errors.RunDirectoryError), f'{what}: {raised!r}'
    _make_directory(directory)
    files.remove_stale(directory / 'a/b')
    assert faulty.scan(directory) == {'a': None, 'a/b': None}, what


def test_a_signal_leaves_nothing_half_done(each):
  def export(directory):
    _make_directory(directory)
    with files.staged_directory(directory / 'a/b/80') as staged:
      files.write_bytes(staged / 'one', b'1')

  for what, raised, directory in each(
    faulty.InterruptingDisk, _nothing, export
  ):
    assert isinstance(raised, signals_lib.Interrupted), what
    assert not _leftovers(directory), what


def _two(directory):
  (directory / 'all').mkdir()
  (directory / 'all/old').write_text('old')


@pytest.mark.parametrize('durable', [False, True], ids=['', 'durable'])
@pytest.mark.parametrize('code', _CODES)
def test_a_staged_directory_comes_whole_or_not_at_all(code, durable, each):
  def work(directory):
    with files.staged_directory(directory / 'final', durable=durable) as staged:
      files.write_bytes(staged / 'one', b'1')
      files.write_bytes(staged / 'two', b'2')

  whole = {'final': None, 'final/one': b'1', 'final/two': b'2'}
  for what, raised, directory in each(_failing(code), _nothing, work):
    assert isinstance(raised, OSError), what
    # Only a failing sync of the parent comes after the commit.
    assert faulty.scan(directory) in ({}, whole), what


@pytest.mark.parametrize('torn', [False, True], ids=['whole', 'torn'])
def test_death_leaves_files_that_move_together_old_or_new(torn, each):
  def work(directory):
    with files.staged_files(directory / 'all') as staged:
      files.write_bytes(staged / 'new', b'new')
      files.write_bytes(staged / 'old', b'new')

  for what, _, directory in each(_dying(torn), _two, work):
    files.remove_stale(directory / 'all')
    left = faulty.scan(directory / 'all')
    assert left.get('new') in (None, b'new'), what
    assert left['old'] in (b'old', b'new'), what
    assert left.keys() <= {'new', 'old'}, what
