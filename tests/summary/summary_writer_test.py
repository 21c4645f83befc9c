"""The summary writer: any number of metrics, and full disks."""

import logging
import time
import types

import numpy as np
import pytest

from tests.support import event_files
from tests.support import shown_runs
from tests.support import small_tasks
import tftrain
from tftrain.platform import _filesystem
from tftrain.platform import files
from tftrain.platform import jsonl
from tftrain.summary import metrics_file as metrics_file_lib
from tftrain.summary import summary_writer as summary_writer_lib


@pytest.mark.slow
def test_ten_thousand_metrics_whatever_their_values(tmp_path):
  names = [f'group_{i % 100}/metric_{i}' for i in range(10_000)]
  odd = [float('nan'), float('inf'), 1e300, -1e300, 1e-320, 0.0]
  scalars = {
    name: odd[i % 7] if i % 7 < 6 else 1.0 + i for i, name in enumerate(names)
  }
  writer = summary_writer_lib.SummaryWriter(tmp_path)
  metrics_file = metrics_file_lib.MetricsFile(tmp_path)
  for take in (writer, metrics_file):
    take(small_tasks.report(1, scalars=scalars))
  writer.close()
  shown = event_files.events(tmp_path / 'train')
  assert set(shown.Tags()['tensors']) == set(names)
  for name in names[:14]:
    _, steps, value = shown_runs.written(tmp_path / 'train', name)
    assert steps == [1]
    np.testing.assert_array_equal(value, np.float32(scalars[name]))
  (line,) = jsonl.read(tmp_path / 'metrics.jsonl')
  assert {name: float(line[name]) for name in names if line[name] != 'nan'} == {
    name: value for name, value in scalars.items() if not np.isnan(value)
  }


def test_reports_are_flushed_once_a_second_or_when_asked(tmp_path, monkeypatch):
  now = 0.0
  clock = types.SimpleNamespace(monotonic=lambda: now, time=time.time)
  monkeypatch.setattr(summary_writer_lib, 'time', clock)
  writer = summary_writer_lib.SummaryWriter(tmp_path)
  written = []
  for step, now in enumerate([0.0, 0.5, 1.2, 1.3], start=1):
    writer(small_tasks.report(step, scalars={'loss': 1.0}))
    written.append(_steps_on_disk(tmp_path))
  writer.flush()
  assert [*written, _steps_on_disk(tmp_path)] == [
    [1], [1], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4]
  ]  # fmt: skip
  writer.close()


def _steps_on_disk(model_dir):
  return shown_runs.written(model_dir / 'train', 'loss')[1]


class Full(_filesystem.Disk):
  """A disk that takes no events."""

  def make_directory(self, path):
    if path.name == 'train':
      raise OSError(28, 'No space left on device')
    super().make_directory(path)


def test_what_cannot_be_written_is_warned_of_once(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(files, 'disk', Full())
  result = shown_runs.train(
    tmp_path, steps=6, actions=[tftrain.actions.WeightHistograms(1)]
  )
  assert result.step == 6
  said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
  assert len([text for text in said if 'Summaries below' in text]) == 1
