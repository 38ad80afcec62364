"""The environment of a local Airflow: SQLite, LocalExecutor, loopback only, nothing sent home.

Everything is set by environment variables, so the settings are seen in one place and a user's own
Airflow is never touched.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from jora_tasks.lineage import events_file

LOOPBACK = "127.0.0.1"
# Keeps OpenLineage's events in a file and sends them on, if $OPENLINEAGE_URL names a server.
TRANSPORT = "jora_tasks.outbox.OutboxTransport"
GPU_POOL, GPU_QUEUE = "gpu", "gpu"
# Which local Airflow a process belongs to. No one exports it by hand, as people do AIRFLOW_HOME.
OWNER = "JORA_LOCAL_AIRFLOW"


def airflow_home(home: Path) -> Path:
    """Where the local Airflow of this home keeps its database, logs and state."""
    return home / "airflow"


def airflow_environment(
    home: Path,
    *,
    spec_path: Path | None,
    dags_folder: Path,
    port: int,
    log_ports: tuple[int, int],
    inherited: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """All environment variables of a local Airflow.

    Variables of another Airflow are dropped, so that its database or secrets are never used; only
    where its OpenLineage events go is kept, if someone set it.

    Args:
      home: JORA_HOME, absolute.
      spec_path: the spec whose values the trigger forms offer, or None for the defaults.
      dags_folder: folder of DAG files.
      port: of the API server and the pages.
      log_ports: of the log servers. They are not started, but Airflow builds addresses from them.
      inherited: the environment to start from, by default this process's.
    """
    inherited = os.environ if inherited is None else inherited
    environment = {
        name: value for name, value in inherited.items() if not name.startswith(("AIRFLOW", OWNER))
    }
    lineage = {name: value for name, value in inherited.items() if name.startswith("AIRFLOW__OPENLINEAGE__")}
    url = f"http://{LOOPBACK}:{port}"
    transport = {"type": TRANSPORT, "log_file_path": str(events_file(home))}
    environment |= {
        OWNER: str(airflow_home(home)),
        "AIRFLOW_HOME": str(airflow_home(home)),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags_folder),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        # Every visitor is an admin without a login: right on loopback, and only there.
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        # A clock that is set, by up to a day, makes no running task's token one of the future or the past.
        "AIRFLOW__API_AUTH__JWT_LEEWAY": str(24 * 3600),
        "AIRFLOW__API__HOST": LOOPBACK,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__PARALLELISM": "4",  # that many idle workers; 32 by default
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS": "jora_tasks.airflow.sqlite.CONNECT",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS_ASYNC": "jora_tasks.airflow.sqlite.CONNECT",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_ports[0]),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(log_ports[1]),
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        # A trainer takes every core: answers may be slow then, and that is no reason to kill a task.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
        "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "10",
        # A worker sees only then that its task has ended, or was stopped in the pages; 5 s by default.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "60",
        "AIRFLOW__DAG_PROCESSOR__HEALTH_CHECK_THRESHOLD": "60",
        # Tasks that a killed Airflow left behind run again soon after the next start.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "SCARF_ANALYTICS": "false",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "jora",
        "AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD": "True",  # the default forks after the task
        "JORA_HOME": str(home),
        # glibc then asks for huge pages, which training on a CPU reads and writes faster.
        "GLIBC_TUNABLES": inherited.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
        # Tasks reach the API server without a proxy.
        "NO_PROXY": _with_loopback(inherited.get("NO_PROXY")),
        "no_proxy": _with_loopback(inherited.get("no_proxy")),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
    }
    environment.pop("JORA_SPEC", None)
    if spec_path is not None:
        environment["JORA_SPEC"] = str(spec_path)
    return environment | lineage


def _with_loopback(no_proxy: str | None) -> str:
    return ",".join(dict.fromkeys([*filter(None, (no_proxy or "").split(",")), LOOPBACK, "localhost"]))
