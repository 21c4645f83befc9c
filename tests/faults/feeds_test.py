"""Data: damaged, missing, too short, or changed."""

import numpy as np
import pytest

import tftrain

pytestmark = pytest.mark.slow


@pytest.fixture
def records(tmp_path):
  """Sixteen examples in each of four files; the pattern that finds them."""
  random = np.random.RandomState(0)
  examples = [
    {
      'features': random.normal(size=6).astype('float32'),
      'label': np.int64(number % 3),
    }
    for number in range(64)
  ]
  paths = tftrain.data.write_records(
    tmp_path / 'data' / 'train', examples, shards=4
  )
  assert len(paths) == 4
  return tmp_path / 'data' / 'train-*'


@pytest.fixture
def file(records):
  return sorted(records.parent.glob('*.tfrecord'))[2]


def fed(run, records, *bindings):
  """A life on the records that does not end well; its error."""
  ended = run.live(f'mishaps.train_data.pattern = {str(records)!r}', *bindings)
  assert ended.code in (1, 2), ended
  return ended.error


def test_records_train(run, records):
  run.finish(f'mishaps.train_data.pattern = {str(records)!r}')


def test_a_flipped_byte_is_named(run, records, file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  text = fed(run, records)
  assert str(file) in text and 'record 8' in text
  assert "TFRecords(on_corrupt='skip')" in text


@pytest.mark.parametrize('cut', [5, 12, 30])
@pytest.mark.parametrize('counted', [True, False])
def test_a_file_cut_short_anywhere_is_an_error(
  counted, cut, run, records, file
):
  """In the header of a record, too, where TensorFlow sees a clean end."""
  content = file.read_bytes()
  size = len(content) // 16
  file.write_bytes(content[: size * 8 + cut])
  if not counted:  # nobody wrote down how long it was
    (records.parent / 'features.json').unlink()
  text = fed(run, records, 'mishaps.train_data.typed = True')
  assert str(file) in text


def test_files_of_another_kind_are_named(run, records, file):
  file.write_text('features,label\n' * 30)
  text = fed(run, records)
  assert f'{file} is no TFRecord file, or is damaged at its first' in text


def test_files_that_are_not_there_are_said_before_step_1(run, records):
  nowhere = records.parent / 'trian-*'
  text = fed(run, nowhere)
  assert f'no file matches {nowhere}: {records.parent} holds 5 files' in text
  assert not run.model_dir.exists()


def test_a_filter_that_drops_everything_is_said_before_step_1(run, records):
  text = fed(run, records, 'mishaps.train_data.filtered = True')
  assert 'Examples.filter keeps 0 of 64 examples' in text
  assert not run.model_dir.exists()


def test_a_record_of_another_shape_is_named(run, records, file):
  odd = {'features': np.zeros(5, 'float32'), 'label': np.int64(0)}
  path = tftrain.data.write_records(
    records.parent / 'odd' / 'train', [odd] * 16, shards=1
  )[0]
  file.write_bytes(path.read_bytes())
  (records.parent / 'features.json').unlink()  # else it is seen by its size
  text = fed(run, records, 'mishaps.train_data.typed = True')
  assert f'{file}' in text and 'record ' in text and 'features' in text


def test_data_whose_position_cannot_be_saved_is_refused_before_step_1(run):
  text = fed(run, 'unused', 'mishaps.train_data.stateful = True')
  assert 'resume' in text
  assert not run.model_dir.exists()


def test_data_that_ends_ends_the_run_at_its_step(run, records):
  ended = run.finish(
    f'mishaps.train_data.pattern = {str(records)!r}',
    'mishaps.train_data.epochs = 2',
  )
  assert 'The training data ends at step 16 of 80' in ended.stderr
  assert 'Done: step 16 of 16' in ended.stdout
  assert run.steps()[-1] == 16


@pytest.mark.parametrize('what', ['one more', 'one less', 'other order'])
def test_files_that_changed_between_two_lives_are_refused(
  what, run, records, file
):
  bindings = [f'mishaps.train_data.pattern = {str(records)!r}']
  run.killed_at(45, *bindings)
  if what == 'one more':
    file.with_name('train-x.tfrecord').write_bytes(file.read_bytes())
  elif what == 'one less':
    file.unlink()
  else:
    other = sorted(records.parent.glob('*.tfrecord'))[0]
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two + two[: len(two) // 16])
    other.write_bytes(one)
  ended = run.live(*bindings)
  assert ended.code == 2
  assert 'is of another run' in ended.error and 'data: ' in ended.error


def test_a_window_of_large_rows_takes_no_more_than_its_budget(run, tmp_path):
  """10,000 rows of 100 KB would be a gigabyte; a quarter is what it may be."""
  rows = ({'x': np.zeros(25_000, 'float32')} for _ in range(600))
  tftrain.data.write_records(tmp_path / 'large', rows, shards=1)
  pipeline = tftrain.data.Examples(
    tftrain.data.TFRecords(tmp_path / 'large-*'), 8, ram_budget_gb=0.01
  )
  assert pipeline.fingerprint()['shuffle'] <= 100
