"""Checks of Ray: which one will be used, and whether its nodes are what the driver takes them for.

Nothing is started: without a cluster the settings are held against this machine.
"""

from __future__ import annotations

import os
import platform
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamonet.doctor.check import Check, PreflightSettings, nearest_folder
from dynamonet.doctor.machine import local_resources
from dynamonet.errors import UserError
from dynamonet.storage import is_uri

ANSWER_SECONDS = 60  # for one small task on each node; a cold worker takes about 5
CONNECT_SECONDS = 5


@dataclass(frozen=True)
class Address:
    """A cluster that `ray.init()` would join."""

    value: str
    source: str  # what names it


def authentication(settings: PreflightSettings) -> list[Check]:
    """Says how Ray will authenticate; never the token itself."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    token = _token_source()
    if mode not in ("", "token", "disabled"):
        text = f"RAY_AUTH_MODE={mode}: expected token or disabled"
        return [Check("fail", "ray auth", text, "export RAY_AUTH_MODE=token, or unset it")]
    if mode == "disabled":
        text = "none (RAY_AUTH_MODE=disabled); a cluster must have been started with the same"
        return [Check("pass", "ray auth", text)]
    if token:
        why = "RAY_AUTH_MODE=token" if mode else "RAY_AUTH_MODE is unset"
        text = f"the token in {token} ({why}); all nodes must have the same, also `ray start`"
        return [Check("pass", "ray auth", text)]
    if mode == "token" and find_address():
        remedy = "copy ~/.ray/auth_token from the cluster's head, or set RAY_AUTH_TOKEN_PATH"
        text = "RAY_AUTH_MODE=token, a cluster to join, and no token here"
        return [Check("fail", "ray auth", text, remedy)]
    text = "no token yet: a private Ray writes ~/.ray/auth_token, and `ray start` then asks for it"
    return [Check("pass", "ray auth", text)]


def cluster_checks(settings: PreflightSettings) -> list[Check]:
    """Looks at the cluster that the stages would join, or at this machine where there is none."""
    import ray

    from dynamonet import cluster

    address = find_address()
    if address is None and not ray.is_initialized():
        text = "no cluster to join (RAY_ADDRESS, `ray start`): each stage starts a private Ray here"
        mine = _resources(settings, [local_resources()], "this machine")
        return [Check("pass", "ray", text), *mine]
    if address is not None and not ray.is_initialized():
        trouble = _unreachable(address)
        if trouble:
            return [trouble]
    with cluster.connected():
        nodes = [node for node in ray.nodes() if node["Alive"]]
        have = ray.cluster_resources()
        where = f"{address.value} ({address.source})" if address else "the Ray of this process"
        counts = {"nodes": len(nodes), "CPU": have.get("CPU", 0), "GPU": have.get("GPU", 0)}
        size = ", ".join(f"{what} {count:.0f}" for what, count in counts.items())
        checks = [Check("pass", "ray", f"{where}: {size}")]
        checks += _resources(settings, cluster.nodes(), "the cluster")
        return checks + _nodes(settings, [node["NodeID"] for node in nodes])


def find_address() -> Address | None:
    """Returns the cluster that `ray.init()` joins: RAY_ADDRESS, or the last `ray start` here."""
    given = os.environ.get("RAY_ADDRESS", "")
    if given:
        return None if given == "local" else Address(given, "RAY_ADDRESS")
    root = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    file = Path(root) / "ray" / "ray_current_cluster"
    if file.is_file() and (text := file.read_text().strip()):
        return Address(text, str(file))
    return None


def _token_source() -> str:
    """Names where a token would be read from, in Ray's order; empty if there is none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path:
        return path if Path(path).is_file() else ""
    return "~/.ray/auth_token" if (Path.home() / ".ray" / "auth_token").is_file() else ""


def _unreachable(address: Address) -> Check | None:
    """Returns a failure where nobody listens: `ray.init()` itself would try for a minute."""
    where = f"{address.value} ({address.source})"
    if address.value.startswith(("http://", "https://")):
        remedy = "unset RAY_ADDRESS, or give HOST:6379; the http address is for `ray job --address`"
        return Check("fail", "ray", f"{where} is a dashboard, which the stages cannot join", remedy)
    host, _, port = address.value.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto"
        return None
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        ended = address.source != "RAY_ADDRESS"
        remedy = (
            f"`ray start --head` again, or remove {address.source} to work on this machine alone"
            if ended
            else "start the cluster, or unset RAY_ADDRESS to work on this machine alone"
        )
        return Check("fail", "ray", f"{where} does not answer: {error}", remedy)
    return None


def _resources(
    settings: PreflightSettings, nodes: Sequence[Mapping[str, float]], what: str
) -> list[Check]:
    from dynamonet.training.distributed.resources import worker_resources

    try:
        scaling, cpus = worker_resources(settings, nodes)
    except UserError as error:
        return [Check("fail", "resources", error.problem, error.remedy)]
    gpu = " and a GPU" if scaling.use_gpu else ""
    text = f"num_workers = {settings.num_workers} with {cpus} CPU{gpu} each fits {what}"
    return [Check("pass", "resources", text)]


def _nodes(settings: PreflightSettings, node_ids: list[str]) -> list[Check]:
    """Runs a small task on every node and compares what it sees with what the driver sees."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from dynamonet.shards.card import CARD

    wanted = settings.shards_paths()[0]
    card = "" if is_uri(wanted) else f"{wanted}/{CARD}"
    with _probe_file(settings) as probe:
        here = node_facts(str(probe), card)
        task = ray.remote(num_cpus=0, max_retries=0)(node_facts)
        asked = {}
        for node in node_ids:
            strategy = NodeAffinitySchedulingStrategy(node, soft=False)
            asked[node] = task.options(scheduling_strategy=strategy).remote(str(probe), card)
        checks = [
            compare_nodes(here, node, _answer(reference)) for node, reference in asked.items()
        ]
    wrong = [check for check in checks if check.state != "pass"]
    return wrong or checks[:1]


def _answer(reference: Any) -> dict[str, Any] | str:
    """Returns a node's facts, or why there are none."""
    import ray
    from ray.exceptions import GetTimeoutError

    try:
        return ray.get(reference, timeout=ANSWER_SECONDS)
    except GetTimeoutError:
        return f"no answer within {ANSWER_SECONDS} s"
    except Exception as error:  # whatever the node's Python raised
        return str(getattr(error, "cause", None) or error).strip().splitlines()[-1]


@contextmanager
def _probe_file(settings: PreflightSettings) -> Iterator[Path]:
    """Writes a small file where results go, or will go, and removes it again."""
    folder = nearest_folder(settings.runs_path())
    file = folder / f".doctor-{uuid.uuid4().hex}"
    try:
        file.write_text(file.name)
        yield file
    finally:
        file.unlink(missing_ok=True)


def node_facts(probe: str, card: str) -> dict[str, Any]:
    """Returns what a process sees; the driver runs it too, and the two are compared."""
    import dynamonet
    from dynamonet.stage import code_version

    try:
        seen = Path(probe).read_text() == Path(probe).name
    except OSError:
        seen = False
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "code": code_version(),
        "package": str(Path(dynamonet.__file__).parent),
        "folder": str(Path.cwd()),
        "results": seen,
        "shards": bool(card) and Path(card).is_file(),
    }


def compare_nodes(here: dict[str, Any], node: str, there: dict[str, Any] | str) -> Check:
    """Holds a node's facts, or why there are none, against the driver's."""
    name = "ray nodes"
    if isinstance(there, str):
        remedy = "install this version of dynamonet in the Python that `ray start` ran with there"
        return Check("fail", name, f"node {node[:8]}: {there}", remedy)
    host = there["host"]
    if there["python"] != here["python"]:
        text = f"{host}: Python {there['python']}, here {here['python']}"
        return Check("fail", name, text, "start Ray with the same Python on every node")
    theirs, ours = there["code"].split(" ", 1), here["code"].split(" ", 1)
    known = min(len(theirs), len(ours))  # the commit is known only where git is
    if theirs[:known] != ours[:known]:
        text = f"{host}: code {there['code']} in {there['package']}, here {here['code']}"
        remedy = "bring every node to the same commit, or ship it: ray job submit --working-dir ."
        return Check("fail", name, text, remedy)
    for key in ("results", "shards"):
        if here[key] and not there[key]:
            text = f"{host} does not see the {key} that this machine sees"
            remedy = "put results and shards on storage that every node mounts at the same path"
            return Check("fail", name, text, remedy)
    text = "same Python and code as here, storage shared"
    if there["folder"] != here["folder"]:
        text += f"; workers run in {there['folder']}"
    return Check("pass", name, text)
