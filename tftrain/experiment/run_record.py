"""What a run has written about itself, read back."""

import json
import math
import pathlib
from typing import Any

from tftrain.platform import files
from tftrain.summary import summary_writer as summary_writer_lib

NAME = 'run.json'


def read_record(model_dir: pathlib.Path) -> dict[str, Any]:
  """What run.json says of a run; nothing if it is not there, or rotten."""
  path = model_dir / NAME
  try:
    with files.explained(path):
      text = path.read_text(encoding='utf-8') if path.exists() else '{}'
    record = json.loads(text)
  except ValueError:
    record = {}
  return record if isinstance(record, dict) else {}


def newest_scalars(model_dir: pathlib.Path) -> dict[str, float]:
  """The last value of each metric, by its full name."""
  scalars = {}
  for values in summary_writer_lib.read_lines(model_dir / 'metrics.jsonl'):
    source = values.pop('source')
    values.pop('step')
    scalars.update({f'{source}/{k}': float(v) for k, v in values.items()})
  return {k: v for k, v in scalars.items() if not math.isnan(v)}
