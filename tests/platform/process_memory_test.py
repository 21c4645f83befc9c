"""Process memory: measured, and growth explained."""

import numpy as np
import pytest
import tensorflow as tf

from tftrain.platform import process_memory


@pytest.mark.slow
def test_memory_is_what_the_kernel_says():
  before = process_memory.resident()
  kept = np.ones([64, 2**20])  # 512 MiB, each page touched
  grown = process_memory.resident() - before
  assert kept.nbytes * 0.95 < grown < kept.nbytes * 1.2
  assert process_memory.most_resident() >= process_memory.resident() * 0.99


def grow(growth, reports, megabytes, keep=lambda: None, traces=lambda i: 1):
  for index in range(reports):
    keep()
    growth.look(10 * index, 1000.0 + megabytes * index, traces(index))


def test_memory_that_stays_is_not_spoken_of(caplog):
  growth = process_memory.Growth()
  for step in range(100):
    growth.look(step, 1000.0 + 300 * (step % 7), 1)
  grow(process_memory.Growth(), 100, 1.0)  # 100 MB in all
  assert caplog.records == []


def test_tensors_that_are_kept_are_named(caplog):
  kept = []

  def keep():
    kept.append(tf.zeros([50 * 250_000]))

  grow(process_memory.Growth(), 11, 50.0, keep)
  (record,) = caplog.records
  text = record.getMessage()
  assert 'grown at each of the last 10 reports, by 450 MB to 1500 MB' in text
  assert 'Python holds' in text and 'more tensors and arrays' in text


def test_growth_elsewhere_is_not_blamed_on_python(caplog):
  grow(process_memory.Growth(), 30, 50.0)
  (record,) = caplog.records
  assert 'no tensor that Python holds' in record.getMessage()


def test_another_compilation_is_the_likely_cause(caplog):
  grow(process_memory.Growth(), 30, 50.0, traces=lambda i: 1 + i // 5)
  (record,) = caplog.records
  assert 'compiled again meanwhile' in record.getMessage()
