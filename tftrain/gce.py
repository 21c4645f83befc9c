"""The machines of a managed instance group of Google Compute Engine."""

from collections.abc import Mapping
import dataclasses
import socket
from typing import Any

from tftrain import errors

GROUP = 'TFTRAIN_GCE_GROUP'
_VARIABLES = ('TFTRAIN_GCE_PROJECT', 'TFTRAIN_GCE_ZONE', GROUP)


@dataclasses.dataclass(frozen=True)
class Group:
  """A managed instance group of one zone.

  Attributes:
    project: The id of the project.
    zone: Such as `europe-west4-a`.
    name: That of the group.
  """

  project: str
  zone: str
  name: str

  def address(self, instance: str, port: int) -> str:
    """By the zonal DNS name that each instance has inside its network."""
    return f'{instance}.{self.zone}.c.{self.project}.internal:{port}'


def members(
  environment: Mapping[str, str], port: int
) -> tuple[tuple[str, ...], int]:
  """The addresses of the group that the environment names, and which is ours.

  Raises:
    StrategyError: The group is not known, cannot be asked for, or this machine
      is none of it.
  """
  missing = [name for name in _VARIABLES if not environment.get(name)]
  if missing:
    raise errors.StrategyError(
      f'{GROUP} needs {" and ".join(missing)}, too; set it'
    )
  group = Group(*(environment[name] for name in _VARIABLES))
  names = list_instances(group)
  host = socket.gethostname().partition('.')[0]
  if host not in names:
    raise errors.StrategyError(
      f'this machine, {host!r}, is none of the {len(names)} of the instance '
      f'group {group.name!r}; give --workers and --task instead'
    )
  addresses = tuple(group.address(name, port) for name in names)
  return addresses, names.index(host)


def list_instances(group: Group, **options: Any) -> list[str]:
  """The names of its instances, sorted.

  Args:
    group: Which.
    **options: For `googleapiclient.discovery.build`.

  Raises:
    StrategyError: The group is not known, or cannot be asked for.
  """
  build, failures = _client()
  what = (
    f'the instance group {group.name!r} in {group.zone!r} of project '
    f'{group.project!r}'
  )
  names: list[str] = []
  try:
    compute = build('compute', 'v1', cache_discovery=False, **options)
    managers = compute.instanceGroupManagers()
    request = managers.listManagedInstances(
      project=group.project, zone=group.zone, instanceGroupManager=group.name
    )
    while request is not None:
      answer = request.execute(num_retries=3)
      for instance in answer.get('managedInstances', ()):
        names.append(str(instance['instance']).rpartition('/')[2])
      request = managers.listManagedInstances_next(request, answer)
  except failures as error:
    if getattr(error, 'status_code', None) == 404:
      raise errors.StrategyError(
        f'there is no such thing as {what}; look at `gcloud compute '
        'instance-groups managed list`'
      ) from error
    raise errors.StrategyError(
      f'{what} cannot be listed: {errors.one_line(error)}; may this machine '
      'read Compute Engine (scope compute-ro)?'
    ) from error
  return sorted(names)


def _client() -> tuple[Any, tuple[type[Exception], ...]]:
  """What makes a client, and what it may raise."""
  try:
    import google.auth.exceptions
    import googleapiclient.discovery
    import googleapiclient.errors
    import httplib2
  except ImportError as error:
    raise errors.StrategyError(
      f'{GROUP} needs google-api-python-client; install it with '
      "pip install 'tftrain[gce]'"
    ) from error
  return googleapiclient.discovery.build, (
    google.auth.exceptions.GoogleAuthError,
    googleapiclient.errors.Error,
    httplib2.HttpLib2Error,
    OSError,
  )
