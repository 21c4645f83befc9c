"""inspect_data: shows examples and the time of each stage."""

from tests.support import resumable_runs
import tftrain
from tftrain.debug import inspect_data


def test_inspecting_shows_examples_and_stages():
  def data():
    source = tftrain.data.InMemory(
      {'x': resumable_runs.X, 'y': resumable_runs.Y}
    )
    return tftrain.data.Examples(source, 8, map=dict, select=('x', 'y'))

  lines = inspect_data.inspect(
    resumable_runs.experiment(data, 5), seconds=0.1
  ).splitlines()
  assert lines[0] == 'train:'
  assert lines[1:3] == ['  examples: 67', '  steps: without end']
  assert any(line.startswith('    0: float32[6] ') for line in lines)
  header = next(i for i, line in enumerate(lines) if 'us/example' in line)
  stages = [line.split() for line in lines[header + 1 :]]
  assert [stage[0] for stage in stages] == ['read', 'map', 'batch']
  assert sum(stage[-1] == 'slowest' for stage in stages) == 1
