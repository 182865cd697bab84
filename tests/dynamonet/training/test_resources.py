"""What workers reserve, on clusters of several kinds of nodes."""

from __future__ import annotations

from typing import Any

import pytest

from dynamonet.errors import UserError
from dynamonet.shards.settings import LoaderSettings
from dynamonet.training.distributed.resources import worker_resources
from dynamonet.training.settings import TrainSettings

HEAD, GPU_NODE = {"CPU": 96.0}, {"CPU": 96.0, "GPU": 8.0}


def cores(nodes: list[dict[str, float]], **settings: Any) -> int:
    scaling, each = worker_resources(TrainSettings(**settings), nodes)
    assert scaling.resources_per_worker == {"CPU": each}
    return each


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([{"CPU": 4}, {"CPU": 4}], 1, 4),  # not the 8 of both
        ([{"CPU": 4}, {"CPU": 4}], 2, 4),
        ([{"CPU": 4}, {"CPU": 4}], 4, 2),
        ([{"CPU": 16}, {"CPU": 2}], 2, 8),  # both on the large one
        ([{"CPU": 0}, {"CPU": 3}], 1, 3),  # a head that takes no part
        ([HEAD, *[GPU_NODE] * 8], 64, 12),  # not the 13 of 864 cores by 64 GPUs
        ([HEAD, *[GPU_NODE] * 8], 8, 12),  # a GPU's share, so that they lie on one node
        ([{"CPU": 64, "GPU": 8}, {"CPU": 32, "GPU": 8}], 16, 4),  # the smallest that is needed
        ([{"CPU": 64, "GPU": 8}, {"CPU": 32, "GPU": 8}], 8, 8),
    ],
)
def test_workers_take_what_a_node_has_room_for(
    nodes: list[dict[str, float]], workers: int, expected: int
) -> None:
    assert cores(nodes, num_workers=workers, loader={"batch_size": 64 * 3}) == expected


@pytest.mark.parametrize(
    ("nodes", "settings", "words"),
    [
        ([{"CPU": 4}, {"CPU": 4}], {"cpus_per_worker": 8}, "1 of 8 CPU wanted, room for 0"),
        ([{"CPU": 3}, {"CPU": 3}], {"cpus_per_worker": 2, "num_workers": 4}, "room for 2"),
        ([HEAD], {"device": "gpu"}, "CPU and a GPU wanted, room for 0"),
        ([HEAD, GPU_NODE], {"num_workers": 16}, r"room for 8 on its nodes \(96 CPU, 0 GPU; 96 CPU"),
    ],
)
def test_what_has_no_room_on_the_nodes_is_refused(
    nodes: list[dict[str, float]], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        cores(nodes, **settings)


def test_an_elastic_run_needs_only_its_least_workers_and_batches_that_divide() -> None:
    settings = TrainSettings(num_workers=3, min_workers=2, cpus_per_worker=1)
    with pytest.raises(UserError, match=r"batch_size = 32 does not divide by a number of .* = 3"):
        worker_resources(settings, [{"CPU": 2}])
    six = settings.model_copy(update={"loader": LoaderSettings(batch_size=6)})
    scaling, each = worker_resources(six, [{"CPU": 2}])
    assert scaling.num_workers == (2, 3) and each == 1
    with pytest.raises(UserError, match="2 of 1 CPU wanted, room for 1"):
        worker_resources(six, [{"CPU": 1}])
