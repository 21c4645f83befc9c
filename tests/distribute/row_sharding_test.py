"""Row sharding: the rows of a worker are those of its replicas."""

import itertools

import pytest
import tensorflow as tf

from tests.support import host_shares
from tftrain.distribute import row_sharding

_TEAMS = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]


@pytest.mark.parametrize('rows', range(8))
@pytest.mark.parametrize('workers,local', _TEAMS)
def test_a_worker_s_rows_dealt_again_are_those_of_its_replicas(
  rows, workers, local
):
  replicas = workers * local
  dealt = []
  for share in host_shares.shares_of(workers, local):
    begin, end = share.of(rows)
    for replica in range(local):
      first, last = row_sharding.Share(replica, replica + 1, local).of(
        end - begin
      )
      dealt.append((begin + first, begin + last))
      whole = row_sharding.Share(
        share.first + replica, share.first + replica + 1, replicas
      )
      assert dealt[-1] == whole.of(rows)
      in_graph = whole.of(tf.constant(rows))
      assert [int(place) for place in in_graph] == list(dealt[-1])
  assert dealt[0][0] == 0
  assert dealt[-1][1] == rows
  assert all(one[1] == two[0] for one, two in itertools.pairwise(dealt))
  sizes = [end - begin for begin, end in dealt]
  assert sizes == sorted(sizes, reverse=True)
  assert max(sizes) - min(sizes) <= 1
