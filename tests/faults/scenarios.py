"""Scenarios of the forked children; swept work goes through their gate.

All of them are lives of one run: 40 steps with dropout, Adam and a moving
average, saved every 10 steps, of which one checkpoint is kept.
"""

import contextlib
import hashlib
import pathlib
import resource
import shutil
import time

import keras
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain.actions import exporter as exporter_lib
from tftrain.experiment import run as run_lib
from tftrain.export import saved_model
from tftrain.summary import metrics_file as metrics_file_lib

STEPS = 40
SAVED = 20
"""The step whose save, or whatever comes at it, is swept."""
BEFORE = 10
"""The step of the last checkpoint before it."""


class Slow(tftrain.SupervisedTask):
  """Pauses in each step, inside the graph, so that a kill finds it there."""

  def __init__(self, pause, *args):
    super().__init__(*args)
    self._pause = pause

  def loss(self, batch, training):
    pause = self._pause

    def wait(labels):
      self.wait(pause)
      return labels

    x, y = batch
    shape = y.shape
    if pause is not None:
      y = tf.numpy_function(wait, [y], tf.int64)
      y.set_shape(shape)
    return super().loss((x, y), training)

  def wait(self, seconds):
    time.sleep(seconds)


def experiment(pause=None, rate=0.01, **options):
  def make_task():
    return Slow(
      pause,
      small_tasks.model(dropout=0.3),
      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      keras.optimizers.Adam(rate),
      {'accuracy': keras.metrics.sparse_categorical_accuracy},
    )

  options = {
    'steps': STEPS,
    'steps_per_loop': 5,
    'log_every': 5,
    'checkpoint_every': 10,
    'keep': 1,
    'export': False,
    'update': tftrain.Update(ema=0.9),
    **options,
  }
  data = lambda: tftrain.Arrays(small_tasks.arrays(), 8)
  return tftrain.Experiment(make_task, data, **options)


def golden(gate, directory):
  """The undisturbed run, and what the sweeps begin with.

  `directory/before` is the run as it stands when step 20 is about to be saved;
  `directory/source` holds the checkpoint of step 20 alone.
  """
  directory = pathlib.Path(directory)
  model_dir = directory / 'run'
  trainers, recorded = [], {}

  def record(report):
    recorded[report.step] = digests(trainers[0])
    if report.step == SAVED:
      checkpoint = model_dir / 'checkpoints/checkpoint'
      while not checkpoint.exists() or leftovers(model_dir):
        time.sleep(0.01)  # the save of step 10 goes on meanwhile
      shutil.copytree(model_dir, directory / 'before')

  actions = [tftrain.Every(10, record)]
  run = experiment(keep=STEPS, actions=actions).prepare(model_dir)
  trainers.append(run.trainer)
  run.train()
  name = f'ckpt-{SAVED:08d}'
  target = directory / 'source/checkpoints' / name
  shutil.copytree(model_dir / 'checkpoints' / name, target)
  return {'digests': recorded, 'end': _end(run)}


def save(gate, source):
  """Sweeps the save of step 20, and the removal of step 10."""
  trainer = _trainer_at(source)
  for directory in gate.directories():
    checkpointer = tftrain.Checkpointer(directory, trainer, keep=1)

    def save_now(checkpointer=checkpointer):
      checkpointer.save()
      checkpointer.wait()

    gate.swept(save_now)


def restore(gate):
  """Sweeps the start of a run, up to its first step."""
  trainer = experiment().prepare('').trainer
  fresh = trainer.read_state()
  for directory in gate.directories():
    trainer.write_state(fresh)
    gate.swept(lambda directory=directory: start(trainer, directory))


def export(gate, source):
  """Sweeps the export of step 20."""
  trainer = _trainer_at(source)
  for directory in gate.directories():
    target = pathlib.Path(directory, 'export', str(SAVED))

    def export_now(target=target):
      saved_model.export_model(trainer.task, trainer.example_features(), target)

    gate.swept(export_now)


def flush(gate):
  """Sweeps what a life from step 10 publishes until it saves step 20."""
  for directory in gate.directories():
    writer = tftrain.summary.SummaryWriter(directory)
    metrics = metrics_file_lib.MetricsFile(directory)

    def publish(writer=writer, metrics=metrics):
      for step in (BEFORE + 5, SAVED):
        report = small_tasks.report(
          step, step - 5, start_step=BEFORE, scalars={'loss': 1.5}
        )
        writer(report)
        metrics(report)
      writer.flush()

    gate.swept(publish)


def start(trainer, model_dir):
  """What a run does before its first step; returns the step it begins at."""
  writer = tftrain.summary.SummaryWriter(model_dir)
  checkpointer = tftrain.Checkpointer(model_dir, trainer, keep=1)
  run = run_lib.Run(
    model_dir,
    trainer=trainer,
    last_step=STEPS,
    evaluators=(),
    checkpointer=checkpointer,
    summary_writer=writer,
    metrics_file=metrics_file_lib.MetricsFile(model_dir),
    exporter=exporter_lib.Exporter(
      model_dir, trainer.task, lambda: trainer, exporter_lib.Export()
    ),
    actions=(),
    checkpoint=[checkpointer],
    options=run_lib.Options(export=False),
    facts={},
  )
  with _no_steps(trainer):
    run.train({'config.gin': '# none\n'})
  return trainer.step


def verify(gate):
  """Starts in each directory as a fresh process does; says what it found."""
  trainer = experiment().prepare('').trainer
  fresh = trainer.read_state()
  for directory in gate.directories():
    directory = pathlib.Path(directory)
    trainer.write_state(fresh)
    facts = {'before': leftovers(directory)}
    outcome = gate.swept(
      lambda directory=directory: start(trainer, directory), **facts
    )
    gate.say(
      'verified',
      outcome=outcome,
      digests=digests(trainer),
      after=leftovers(directory),
      export=_export_digest(trainer, directory),
    )


def train(gate, hold_at=None, file_limit=None, clock=0, tell=1, **options):
  """Whole runs: says where they are, and how each ended.

  Args:
    gate: The Gate.
    hold_at: The step at which to wait to be killed, if it gets there.
    file_limit: The largest file that the disk has room for.
    clock: By how many seconds the clock is wrong.
    tell: After how many steps it says where it is.
    **options: Of the experiment.
  """
  if file_limit is not None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, hard))
  right = time.time
  time.time = lambda: right() + clock

  def follow(report):
    gate.say('step', step=report.step)
    if hold_at is not None and report.step >= hold_at:
      time.sleep(600)

  for directory in gate.directories():
    run = experiment(actions=[tftrain.Every(tell, follow)], **options)
    run = run.prepare(directory)
    gate.say('prepared')
    outcome = gate.swept(lambda run=run: run.train().step)
    gate.say('trained', outcome=outcome, end=_end(run))


def digests(trainer):
  """SHA-256 of every value of a Trainer's state; not the library's own."""
  return {
    name: hashlib.sha256(tf.io.serialize_tensor(value).numpy()).hexdigest()
    for name, value in sorted(trainer.read_state().items())
  }


def leftovers(model_dir):
  """Temporary files and directories; not what lies in such a directory."""
  found = pathlib.Path(model_dir).rglob('.tmp-*')
  names = sorted(str(path.relative_to(model_dir)) for path in found)
  return [name for name in names if name.count('.tmp-') == 1]


def _trainer_at(source):
  """A Trainer as it is when it comes to step 20.

  Restored, not trained to there: compiling the loop would double the time of
  every point, and the sweeps of `restore` prove that it makes no difference.
  """
  trainer = experiment().prepare('').trainer
  assert tftrain.Checkpointer(source, trainer).restore() == SAVED
  return trainer


@contextlib.contextmanager
def _no_steps(trainer):
  trainer.train = lambda *args: None
  try:
    yield
  finally:
    del trainer.train


def _end(run):
  """All that must not depend on what happened on the way."""
  metrics = pathlib.Path(run.model_dir, 'metrics.jsonl')
  content = metrics.read_bytes() if metrics.exists() else b''
  return {
    'step': run.trainer.step,
    'digests': digests(run.trainer),
    'metrics': hashlib.sha256(content).hexdigest(),
  }


def _export_digest(trainer, model_dir):
  """What the exported model computes, or None if there is none."""
  directory = model_dir / 'export' / str(SAVED)
  if not directory.exists():
    return None
  serve = tf.saved_model.load(str(directory)).signatures['serving_default']
  outputs = serve(inputs=trainer.example_features())
  return hashlib.sha256(
    b''.join(outputs[name].numpy().tobytes() for name in sorted(outputs))
  ).hexdigest()
