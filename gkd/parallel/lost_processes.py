"""Tells the loss of another process of a job from an error of this process's own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

from gkd.errors import JobError, as_user_error, one_line
from gkd.parallel import job_messages, processes

_ANSWER_SECONDS = 5.0  # the others look for a roll call every second
_SHOWN = 200  # characters of an error that the line quotes
_MARGIN_SECONDS = 5.0  # between a heartbeat timeout and the end of this process by JAX
# XLA's status codes, with which its errors begin; a collective outside of `jit` is a ValueError.
_STATUS = re.compile(
    r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
)
# Gloo's, gRPC's and the coordination service's texts about a connection or a process that is gone.
_BROKEN = re.compile(
    r"connection (was )?(reset|closed|refused|aborted|lost|timed out)|broken pipe|socket closed"
    r"|timed out waiting \d+ ?ms for (send|recv)|failed to send rpc to coordination service"
    r"|heartbeat timeout|stopped sending heartbeats|tasks? (is|are) unhealthy|no route to host"
    r"|(host|network) is unreachable|transport endpoint is not connected"
    r"|(read|connect|application) timeout",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Loss:
    """A lost process or connection of a job."""

    line: str  # for the user
    silent: frozenset[int]  # numbers of the processes that gave no sign of life


def find_loss(error: BaseException, environment: Mapping[str, str]) -> Loss | None:
    """Finds out whether an error is the consequence of a lost process of the same job.

    The other processes are asked for a sign of life. An error about a broken connection is a loss
    in any case, and the line names those that are silent. An error about anything else is this
    process's own if all of them answer; if one is silent, JAX's coordination service decides: it
    ends this process within the heartbeat timeout if the silent one is lost. Where another process
    has reported a failure, this one ends with it here.

    Args:
      error: the exception that ended this process's command.
      environment: environment variables of the process, for the heartbeat timeout.

    Returns:
      The loss; None where the error is this process's own, and in a job of one process.
    """
    broken = connection_error(error)
    if as_user_error(error) is not None and broken is None:
        return None
    seconds = _ANSWER_SECONDS
    if broken is None:
        seconds = processes.heartbeat_seconds(environment) + _MARGIN_SECONDS
    try:
        silent = job_messages.roll_call(seconds)
    except JobError:
        return _loss({0}, broken or error)
    if silent is None or broken is None:
        return None
    return _loss(silent, broken)


def _loss(silent: set[int], error: BaseException) -> Loss:
    names = ", ".join(str(number) for number in sorted(silent))
    what = "a connection between processes of the job broke"
    if silent:
        several = len(silent) > 1
        what = f"{'processes' if several else 'process'} {names} of the job "
        what += "were lost" if several else "was lost"
    again = "start all of them again: the run continues from its last checkpoint"
    return Loss(f"{what} ({one_line(error)[:_SHOWN]}): {again}", frozenset(silent))


def connection_error(error: BaseException | None) -> BaseException | None:
    """Returns the error of XLA about a broken connection in a chain of causes, or None.

    >>> connection_error(ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"))
    ValueError('UNKNOWN: Gloo all-reduce failed: Connection closed by peer')
    >>> connection_error(ConnectionResetError("Connection reset by peer"))
    """
    for cause in _causes(error):
        text = str(cause)
        if _STATUS.match(text) and _BROKEN.search(text):
            return cause
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
