"""TensorBoard on a directory, asked in this process."""

from tensorboard import program
from tensorboard.backend import application
from tensorboard.backend.event_processing import data_provider
from tensorboard.backend.event_processing import plugin_event_multiplexer
from werkzeug import test as werkzeug_test


def tensorboard_of(logdir):
  """A client of TensorBoard, in this process and without a port."""
  board = program.TensorBoard()
  board.configure(['', '--logdir', str(logdir), '--load_fast=false'])
  multiplexer = plugin_event_multiplexer.EventMultiplexer(
    size_guidance={'tensors': 100}
  )
  multiplexer.AddRunsFromDirectory(str(logdir))
  multiplexer.Reload()
  provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
  return werkzeug_test.Client(
    application.TensorBoardWSGIApp(
      board.flags, board.plugin_loaders, provider, None, multiplexer
    )
  )


def hparams_rows(logdir):
  """(hparams, metric -> last value) of each row of the HPARAMS tab."""
  answer = tensorboard_of(logdir).post(
    '/data/plugin/hparams/session_groups',
    json={
      'startIndex': 0,
      'sliceSize': 100,
      'allowedStatuses': ['STATUS_UNKNOWN'],
      'colParams': [],
    },
  )
  return [
    (
      row['hparams'],
      {
        f'{value["name"]["group"]}/{value["name"]["tag"]}': value['value']
        for value in row['metricValues']
      },
    )
    for row in answer.json['sessionGroups']
  ]
