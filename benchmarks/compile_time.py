"""Benchmark of compilation: time and memory with XLA, by the number of layers.

  python benchmarks/compile_time.py --layers=5,10,20,40

A Dense network of each depth is prepared and trained for 200 steps, in a
process of its own: without XLA, and with whole blocks in XLA. The table shows
the seconds that the loop takes to trace and compile, and the most memory of the
process, with their ratios to the process without XLA.
"""

from collections.abc import Sequence
import json
import pathlib
import subprocess
import sys

from absl import app
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

_LAYERS = flags.DEFINE_list('layers', ['5', '10', '20', '40'], 'Depths.')
_ONE = flags.DEFINE_string('one', None, 'For the processes: jit,layers.')

_STEPS = 200


def measure(jit: str, layers: int) -> dict[str, float]:
  """Returns the seconds to compile and the most memory, in MB."""
  from benchmarks import step_workloads
  import tftrain
  from tftrain.platform import process_memory

  workload = step_workloads.dense(layers, 64, steps=_STEPS)
  trainer = tftrain.Trainer(
    workload.make_task(),
    tftrain.Arrays(workload.arrays(), workload.batch_size),
    update=tftrain.Update(jit=jit),
  )
  trainer.prepare()
  trainer.train(_STEPS)
  return {
    'seconds': trainer.loop.compile_seconds or 0.0,
    'memory': process_memory.most_resident() / 1e6,
  }


def in_process(jit: str, layers: int) -> dict[str, float]:
  """Returns what a process of its own measures."""
  command = [sys.executable, __file__, f'--one={jit},{layers}']
  done = subprocess.run(command, check=True, capture_output=True, text=True)
  found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
  return found


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'what is {argv[1]!r}?')
  if _ONE.value:
    jit, layers = _ONE.value.split(',')
    print(json.dumps(measure(jit, int(layers))))
    return
  print(f'{"layers":>6} {"trace s":>8} {"XLA s":>8} {"ratio":>6}', end='')
  print(f' {"MB":>6} {"XLA MB":>7} {"ratio":>6}')
  for layers in map(int, _LAYERS.value):
    off, block = (in_process(jit, layers) for jit in ('off', 'block'))
    seconds, memory = off['seconds'], off['memory']
    print(
      f'{layers:6} {seconds:8.2f} {block["seconds"]:8.2f} '
      f'{block["seconds"] / seconds:6.1f} {memory:6.0f} '
      f'{block["memory"]:7.0f} {block["memory"] / memory:6.2f}',
      flush=True,
    )


if __name__ == '__main__':
  app.run(main)
