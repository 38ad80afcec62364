"""The way to the Kubernetes API, as ``$KUBECONFIG`` or the pod's service account tells."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from jora_tasks.errors import InputError, first_line
from jora_tasks.launching.settings import TRAINING_JOB

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def way_to_the_api() -> tuple[Any, str]:
    """The client's configuration, and the namespace of whoever asks.

    Raises:
      InputError: if the client is not installed, or nothing tells where the API is.
    """
    try:
        from kubernetes import client, config
    except ImportError:
        raise InputError(
            f"{TRAINING_JOB} needs the Kubernetes client; install it with pip install -c constraints.txt "
            "-e '.[kubernetes]'."
        ) from None
    file, way = os.environ.get("KUBECONFIG"), client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and not file:
            config.load_incluster_config(way)
            own = (_ACCOUNT / "namespace").read_text().strip()
        else:
            config.load_kube_config(file, client_configuration=way)
            own = config.list_kube_config_contexts(file)[1]["context"].get("namespace", "default")
    except (config.ConfigException, yaml.YAMLError, OSError) as error:
        why = first_line(error)
    except (ValueError, TypeError, AttributeError, KeyError):  # what it says may be of a secret
        why = f"{file or 'the kubeconfig'} is none that can be read"
    else:
        _strip_tokens(way)
        return way, own
    raise InputError(
        f"{TRAINING_JOB} needs a way to the Kubernetes API ({why}); give the pod a service account with "
        "automountServiceAccountToken, or name a kubeconfig in KUBECONFIG."
    )


def _strip_tokens(way: Any) -> None:
    """Leave out the newline that a token's text may end with: no request may have one."""
    renew = way.refresh_api_key_hook

    def strip(way: Any) -> None:
        if renew:
            renew(way)
        way.api_key = {name: key.strip() for name, key in way.api_key.items()}
        way.refresh_api_key_hook = strip  # in whose place `renew` puts itself

    way.refresh_api_key_hook = strip
