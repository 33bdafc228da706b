"""What the API server's failures mean: which pass by themselves, and how to mend the others.

Input: exceptions of the client library. Output: errors that a user can act on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tenacity import RetryCallState

from kvab.errors import DependencyError, InputError, KvabError

PASSING = (429, 500, 502, 503, 504)


class Missing(DependencyError):
    """There is no such object."""


class Existing(DependencyError):
    """There is one already, or it is another one than expected."""


class Unreadable(Exception):
    """An answer that is not the API's, such as the page of a proxy on the way."""


def failures() -> tuple[type[Exception], ...]:
    """Return the exceptions of a failed call."""
    from kubernetes.client.rest import ApiException
    from urllib3.exceptions import HTTPError

    return (ApiException, HTTPError, ConnectionError, Unreadable)


def passes(error: BaseException) -> bool:
    """Whether a failed call may succeed later: a restart, a lost connection, too many requests.

    The conversion webhook of Dynamo's operator answers every read through the API server, so a
    restart of the operator looks like an error 500 of ours.
    """
    from kubernetes.client.rest import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        return error.status in PASSING and "denied the request" not in str(error.body)
    return isinstance(error, HTTPError | ConnectionError) and not _certificate(error)


def _certificate(error: BaseException) -> bool:
    """Whether the other side could not be trusted, which no repetition changes."""
    from urllib3.exceptions import SSLError

    return isinstance(getattr(error, "reason", None) or error, SSLError)


def pause_s(state: RetryCallState) -> float:
    """Return how long to wait before the next try: what the server asks for, else ever longer."""
    error = state.outcome.exception() if state.outcome else None
    headers = getattr(error, "headers", None) or {}
    asked = headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else min(10.0, 0.25 * 2**state.attempt_number)


def message(error: Any) -> str:
    """Return what the API server said, in one line."""
    try:
        said = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError, AttributeError):
        said = str(getattr(error, "reason", None) or error)
    return " ".join(said.split())


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn the client's exceptions into errors that a user can act on."""
    try:
        yield
    except KvabError:
        raise
    except failures() as error:
        status, said = getattr(error, "status", None), message(error)
        if status == 404:
            raise Missing(f"{what}: not found ({said}); see `kvab doctor`") from None
        if status == 409:
            raise Existing(
                f"{what}: another one is there already ({said}); delete it, or wait for it"
            ) from None
        if status in (400, 422):
            raise InputError(
                f"{what}: the API server refuses it: {said}; mend the recipe"
            ) from None
        if status in (401, 403) and "denied the request" not in said:
            raise DependencyError(
                f"{what}: not allowed ({said}); log in again, or have recipes/rbac.yaml applied"
            ) from None
        if status == 403:
            raise InputError(f"{what}: admission denied: {said}; mend the recipe") from None
        if _certificate(error):
            raise DependencyError(
                f"{what}: the API server's certificate is not trusted ({said}); check the server "
                "and certificate-authority of your kubeconfig"
            ) from None
        if isinstance(error, Unreadable):
            raise DependencyError(f"{what}: {said}; is there a proxy on the way?") from None
        if status and not passes(error):
            raise DependencyError(
                f"{what}: the API server refuses it with status {status} ({said}); is this cluster "
                "of a version that the README names?"
            ) from None
        raise DependencyError(
            f"{what}: the API server did not answer in time ({said}); is the cluster up?"
        ) from None
