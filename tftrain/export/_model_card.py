"""Model card: describes an exported model, its origin and its use."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

_PYTHON = """```python
import tensorflow as tf

model = tf.saved_model.load('{directory}')
outputs = model.signatures['serving_default']({arguments})
```"""

_SHELL = """```sh
saved_model_cli show --dir {directory} --all
```"""

_C = """From C, `TF_LoadSessionFromSavedModel` with the tag `serve`, and
the headers and libraries of the TensorFlow package. The operations are called:

"""


def text(
  staged: pathlib.Path,
  directory: pathlib.Path,
  module: Any,
  seen: Mapping[str, Any],
  about: Mapping[str, Any],
) -> str:
  """Returns the text of `model.md`.

  Args:
    staged: Staging directory of the SavedModel.
    directory: Final directory of the SavedModel.
    module: The exported module, with `offered` and `all_variables`.
    seen: Result of the comparison with the live model.
    about: Title -> text, table (a mapping) or JSON: facts about the run.
  """
  first = next(iter(module.offered.values()))
  names = first.structured_input_signature[1]
  arguments = ', '.join(f'{name}=...' for name in names)
  parts = [
    f'# Model {directory.name}',
    _signatures(module.offered),
    f'Parameters: {_count_parameters(module.all_variables):,}',
    _comparison(seen),
    *(f'## {title}\n\n{_as_markdown(value)}' for title, value in about.items()),
    '## Versions\n\n'
    + _as_markdown({'tensorflow': tf.__version__, 'keras': keras.__version__}),
    '## How to load it',
    _PYTHON.format(directory=directory, arguments=arguments),
    _SHELL.format(directory=directory),
    _C + _operations(staged),
  ]
  return '\n\n'.join(parts) + '\n'


def _signatures(offered: Mapping[str, Any]) -> str:
  lines = ['| signature | takes | gives |', '|---|---|---|']
  for name, concrete in offered.items():
    takes = _specs(concrete.structured_input_signature[1])
    gives = _specs(concrete.structured_outputs)
    lines.append(f'| `{name}` | {takes} | {gives} |')
  return '\n'.join(lines)


def _operations(staged: pathlib.Path) -> str:
  """Returns a table of the input and output operations, for the C API."""
  saved = saved_model_pb2.SavedModel()
  saved.ParseFromString((staged / 'saved_model.pb').read_bytes())
  lines = ['| signature | inputs | outputs |', '|---|---|---|']
  for name, found in sorted(saved.meta_graphs[0].signature_def.items()):
    if name[:2] != '__':  # those are internal to TensorFlow
      inputs, outputs = (
        ', '.join(f'`{key}` is `{side[key].name}`' for key in sorted(side))
        for side in (found.inputs, found.outputs)
      )
      lines.append(f'| `{name}` | {inputs} | {outputs} |')
  return '\n'.join(lines)


def _specs(specs: Mapping[str, Any]) -> str:
  return ', '.join(
    f'`{name}` {spec.dtype.name}{_shape_text(spec.shape)}'
    for name, spec in specs.items()
  )


def _shape_text(shape: tf.TensorShape) -> str:
  if shape.rank is None:
    return '[...]'
  sizes = ['batch' if i == 0 and n is None else n for i, n in enumerate(shape)]
  return f'[{", ".join("?" if n is None else str(n) for n in sizes)}]'


def _count_parameters(variables: Any) -> int:
  return sum(variable.shape.num_elements() for variable in variables)


def _comparison(seen: Mapping[str, Any]) -> str:
  lines = [
    '| compared with the live model | difference | allowed |',
    '|---|---:|---:|',
  ]
  for group in seen.values():
    for name, outputs in group.items():
      for output, found in outputs.items():
        what = f'`{name}`: `{output}`'
        lines.append(
          f'| {what} | {found["difference"]:g} | {found["tolerance"]:g} |'
        )
  return '\n'.join(lines)


def _as_markdown(value: Any) -> str:
  if isinstance(value, str):
    return f'```text\n{value.strip()}\n```'
  if isinstance(value, Mapping) and value:
    lines = ['| | |', '|---|---|']
    lines += [f'| {k} | {_number_text(v)} |' for k, v in value.items()]
    return '\n'.join(lines)
  return f'`{json.dumps(value)}`'


def _number_text(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:g}'
  return value if isinstance(value, str) else f'`{json.dumps(value)}`'
