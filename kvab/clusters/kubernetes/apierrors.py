"""What the API server's failures mean: which pass by themselves, and how to fix the others.

Input: exceptions of the client library. Output: errors that a user can act on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tenacity import RetryCallState

from kvab.errors import DependencyError, InputError, KvabError

PASSING = (429, 500, 502, 503, 504)


class Missing(DependencyError):
    """There is no such object."""


class Existing(DependencyError):
    """There is one already, or it is another one than expected."""


class Unreadable(Exception):
    """An answer that is not the API's, such as the page of a proxy on the way."""


class WebhookDown(DependencyError):
    """A webhook that has to be asked cannot be: whatever needs it fails alike."""


class OverQuota(DependencyError):
    """A quota has no room for an object."""


class Rejection(NamedTuple):
    """What a rule of the cluster says when it rejects an object, why, and how to fix it."""

    words: str
    why: str
    fix: str
    error: type[KvabError] = DependencyError


# In the words of kube-apiserver's admission plugins. A webhook may quote any of the others.
REJECTIONS = (
    Rejection("failed calling webhook|conversion webhook for .* failed",
              "the API server could not call a webhook", "check the pods behind it; those of "
              "nvidia.com and kb.io are Dynamo's operator", WebhookDown),
    Rejection("denied the request", "admission denied", "change the recipe as it says, or ask "
              "whoever runs the webhook for an exception", InputError),
    Rejection("ValidatingAdmissionPolicy '", "a policy of the cluster denies it",
              "change the recipe as it says, or ask the cluster's administrators for an exception",
              InputError),
    Rejection("(exceeded|insufficient) quota|status unknown for quota",
              "over a quota of the namespace", "free what it counts, or ask for a larger quota: "
              "`kubectl describe quota`", OverQuota),
    Rejection("failed quota: .* must specify", "a quota of the namespace wants more told",
              "give these resources in the recipe, or have a LimitRange set defaults"),
    Rejection("(maximum|minimum) .+ usage per |max limit to request ratio per ",
              "outside a LimitRange of the namespace", "change the resources in the recipe, or "
              "have the range changed: `kubectl describe limitrange`"),
    Rejection("violates PodSecurity", "the namespace's pod security level forbids it", "have the "
              "namespace labelled pod-security.kubernetes.io/enforce=baseline, or give the recipe "
              "the securityContext that it asks for"),
    Rejection("security context constraint", "no security context constraint allows it",
              "have one granted to the namespace's service account"),
    Rejection("because it is being terminated", "the namespace is being deleted",
              "wait until it is gone, then create it anew"),
)  # fmt: skip


def rejection(said: str) -> Rejection | None:
    """Return the rule of the cluster that speaks, None if it is none of them."""
    return next((rule for rule in REJECTIONS if re.search(rule.words, said)), None)


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


def pause_s(state: RetryCallState, first_s: float) -> float:
    """Return how long to wait before the next try: what the server asks for, else ever longer."""
    error = state.outcome.exception() if state.outcome else None
    headers = getattr(error, "headers", None) or {}
    asked = headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else min(10.0, first_s * 2 ** (state.attempt_number - 1))


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
        raise _explained(what, error) from None


def _explained(what: str, error: Any) -> KvabError:
    """Return the error that a user can act on."""
    status, said = getattr(error, "status", None), message(error)
    if status == 404:
        return Missing(f"{what}: not found ({said}); see `kvab doctor`")
    if status == 409:
        return Existing(f"{what}: another one is there already ({said}); delete it, or wait for it")
    if status and (rule := rejection(said)):
        return rule.error(f"{what}: {rule.why}: {said}; {rule.fix}")
    if status in (400, 422):
        return InputError(f"{what}: the API server rejects it: {said}; fix the recipe")
    if status == 401:
        return DependencyError(f"{what}: not allowed ({said}); log in again")
    if status == 403:
        fix = "this is no missing permission: ask the cluster's administrators for the rule"
        if re.search('User ".*" cannot ', said):
            fix = "have recipes/rbac.yaml applied"
        return DependencyError(f"{what}: not allowed ({said}); {fix}")
    if _certificate(error):
        return DependencyError(
            f"{what}: the API server's certificate is not trusted ({said}); check the server "
            "and certificate-authority of your kubeconfig"
        )
    if isinstance(error, Unreadable):
        return DependencyError(f"{what}: {said}; is there a proxy on the way?")
    if status and not passes(error):
        return DependencyError(
            f"{what}: the API server rejects it with status {status} ({said}); is this cluster "
            "of a version that the README names?"
        )
    failed = "failed with status 500" if status == 500 else "did not answer in time"
    return DependencyError(f"{what}: the API server {failed} ({said}); is the cluster up?")
