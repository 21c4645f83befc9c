"""An instance group as the official client lists it, from a small server."""

import functools
import http.server
import json
import socket
import sys
import threading

import pytest

from tftrain import clusters
from tftrain import errors
from tftrain import gce

_VARIABLES = {
  'TFTRAIN_GCE_PROJECT': 'lab',
  'TFTRAIN_GCE_ZONE': 'europe-west4-a',
  'TFTRAIN_GCE_GROUP': 'digits',
}


class Api(http.server.BaseHTTPRequestHandler):
  """Answers like Compute Engine, two instances a page."""

  names = ('digits-x9', 'digits-2k', 'digits-b0')

  def do_POST(self):
    path, _, query = self.path.partition('?')
    place = 'projects/lab/zones/europe-west4-a/instanceGroupManagers'
    if not path.endswith(f'{place}/digits/listManagedInstances'):
      return self.answer(404, {'error': {'code': 404, 'message': 'not found'}})
    first = 2 if 'pageToken=2' in query else 0
    root = 'https://www.googleapis.com/compute/v1/projects/lab/zones'
    page = {
      'managedInstances': [
        {'instance': f'{root}/europe-west4-a/instances/{name}'}
        for name in self.names[first : first + 2]
      ]
    }
    if not first:
      page['nextPageToken'] = '2'
    self.answer(200, page)

  def answer(self, code, content):
    body = json.dumps(content).encode()
    self.send_response(code)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *_):
    pass


@pytest.fixture
def api(monkeypatch):
  """The real client, told where the server is; it needs no credentials."""
  pytest.importorskip('googleapiclient')
  credentials = pytest.importorskip('google.auth.credentials')
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Api)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  options = {
    'client_options': {
      'api_endpoint': f'http://127.0.0.1:{server.server_port}'
    },
    'credentials': credentials.AnonymousCredentials(),
  }
  monkeypatch.setattr(
    gce, 'list_instances', functools.partial(gce.list_instances, **options)
  )
  yield server
  server.shutdown()
  server.server_close()


@pytest.mark.parametrize(
  ('host', 'task'), [('digits-2k', 0), ('digits-x9.c.lab.internal', 2)]
)
def test_a_group_is_a_cluster(api, monkeypatch, host, task):
  monkeypatch.setattr(socket, 'gethostname', lambda: host)
  found = clusters.resolve({**_VARIABLES, 'TFTRAIN_PORT': '4000'})
  assert found.workers == tuple(
    f'digits-{name}.europe-west4-a.c.lab.internal:4000'
    for name in ('2k', 'b0', 'x9')
  )
  assert found.task == task
  environment = dict(_VARIABLES)
  assert clusters.enter(environment, [], None, together=False) is (task == 0)
  assert clusters.resolve(environment) is None


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'TFTRAIN_GCE_GROUP': 'digit'}, 'no such thing as the instance group'),
    ({'TFTRAIN_GCE_PROJECT': 'shop'}, "of project 'shop'"),
    ({}, "'web-1', is none of the 3 of the instance group 'digits'"),
    ({'TFTRAIN_GCE_ZONE': ''}, 'needs TFTRAIN_GCE_ZONE, too; set it'),
    ({'TFTRAIN_PORT': 'x'}, "TFTRAIN_PORT='x' must be a whole number"),
  ],
)  # fmt: skip
def test_what_cannot_be_is_said(api, monkeypatch, changes, message):
  monkeypatch.setattr(socket, 'gethostname', lambda: 'web-1')
  with pytest.raises(errors.StrategyError) as raised:
    clusters.resolve({**_VARIABLES, **changes})
  assert message in str(raised.value)
  assert '\n' not in str(raised.value)


def test_a_server_that_is_gone_is_one_line(api, monkeypatch):
  monkeypatch.setattr('time.sleep', lambda _: None)  # between retries
  api.shutdown()
  api.server_close()
  with pytest.raises(errors.StrategyError, match='cannot be listed: .*refused'):
    clusters.resolve(_VARIABLES)


def test_without_the_client_it_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'googleapiclient.discovery', None)
  with pytest.raises(errors.StrategyError, match=r"'tftrain\[gce\]'"):
    clusters.resolve(_VARIABLES)
