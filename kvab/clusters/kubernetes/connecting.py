"""The way to a cluster: the official client for a context of the user's kubeconfig.

Input: a cluster profile. Output: the client.
"""

from __future__ import annotations

import os
from typing import Any

from kvab.errors import InputError
from kvab.study import Kubernetes


def api_client(profile: Kubernetes) -> Any:
    """Return the client for the profile's context.

    Raises
    ------
    InputError
        If there is no kubeconfig, or it has no such context.
    """
    from kubernetes import client, config

    settings = client.Configuration()
    settings.retries = False  # ours wait longer, and know what passes
    try:
        return config.new_client_from_config(
            os.environ.get("KUBECONFIG"), profile.context, client_configuration=settings
        )
    except (config.ConfigException, OSError) as error:
        raise InputError(
            f"recipes/clusters/{profile.name}.yaml: context: expected a context of your "
            f"kubeconfig, got {profile.context or 'none'} ({error}); see "
            "`kubectl config get-contexts`"
        ) from None
