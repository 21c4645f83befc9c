"""A run that is started again and again by its command line."""

import json
import pathlib
import shutil

from tensorboard.backend.event_processing import plugin_event_accumulator

from tests.faults import mishaps


class Run:
  """What users have: a gin file, a model_dir and a command.

  Args:
    commands: Where its processes come from.
    directory: Where the files lie.
    recipe: The text of the gin file.
    last: The last step.
  """

  def __init__(
    self, commands, directory, recipe=mishaps.RECIPE, last=mishaps.STEPS
  ):
    self._commands = commands
    self._recipe, self._last = recipe, last
    self.directory = pathlib.Path(directory)
    self.model_dir = self.directory / 'run'
    self.checkpoints = self.model_dir / 'checkpoints'
    (self.directory / 'recipe.gin').write_text(recipe)

  def start(self, *bindings, flags=(), model_dir=None, **rights):
    """Starts a life; does not wait for its end."""
    return self._commands.start(
      f'--gin_file={self.directory / "recipe.gin"}',
      f'--model_dir={model_dir or self.model_dir}',
      *(f'--gin_bindings={binding}' for binding in bindings),
      *flags,
      **rights,
    )

  def live(self, *bindings, **options):
    """One life to its end, whatever that is."""
    return self.start(*bindings, **options).wait()

  def finish(self, *bindings, **options):
    """One life, which must come to the end of the run."""
    ended = self.live(*bindings, **options)
    assert ended.code == 0, ended.stderr
    return ended

  def started_until(self, step, *bindings, **options):
    """A life that has reported a step."""
    life = self.start(*bindings, **options)
    life.until(lambda: self.last_reported() >= step, f'step {step}')
    return life

  def killed_at(self, step, *bindings, **options):
    life = self.started_until(step, *bindings, **options)
    life.send('SIGKILL')
    assert life.wait().code == -9

  def lines(self, name='metrics.jsonl'):
    path = self.model_dir / name
    text = path.read_text() if path.exists() else ''
    return [json.loads(line) for line in text.splitlines()]

  def last_reported(self, source='train'):
    steps = [l['step'] for l in self.lines() if l['source'] == source]
    return max(steps, default=0)

  def steps(self):
    """Of which there are checkpoints."""
    names = [path.name for path in self.checkpoints.glob('ckpt-*')]
    return sorted(int(n[5:]) for n in names if n[5:].isdecimal())

  def manifest(self, step=None):
    name = f'ckpt-{self._last if step is None else step:08d}'
    path = self.checkpoints / name / 'manifest.json'
    return json.loads(path.read_text())

  def json(self, name):
    return json.loads((self.model_dir / name).read_text())

  def end(self):
    """All that must not depend on what happened on the way."""
    values = self.manifest()['values']
    digests = {name: facts['sha256'] for name, facts in values.items()}
    return digests, (self.model_dir / 'metrics.jsonl').read_text()

  def charted(self, source):
    """The steps of the loss that TensorBoard would show."""
    directory = str(self.model_dir / source)
    events = plugin_event_accumulator.EventAccumulator(directory)
    events.Reload()
    return [event.step for event in events.Tensors('loss')]

  def leftovers(self):
    return [str(path) for path in self.model_dir.rglob('.tmp-*')]

  def another(self, directory):
    """A run of the same commands elsewhere, which was never started."""
    directory.mkdir(exist_ok=True)
    return Run(self._commands, directory, self._recipe, self._last)

  def copied(self, directory):
    """The same run, elsewhere."""
    copy = self.another(directory)
    shutil.copytree(self.model_dir, copy.model_dir)
    return copy
