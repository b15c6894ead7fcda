"""The errors of the program itself: settings, the development stack, the demo."""

from __future__ import annotations

from collections.abc import Sequence

from ports.errors import CeremonyError


class SettingsInvalid(CeremonyError):
    """The environment or the options are wrong; `problems` has one line for each variable."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("setting_invalid", "; ".join(problems))
        self.problems = tuple(problems)


class DevError(CeremonyError):
    """`ceremony dev` cannot start."""


class NatsServerError(CeremonyError):
    """nats-server is missing, ended, or did not become ready: `nats_server_missing`, `_ended` or `_not_ready`."""


class KnobError(CeremonyError, ValueError):
    """A knob of the simulated Ray executor has a value outside its range: `knob_invalid`."""


class SimulationError(CeremonyError):
    """The simulated Ray executor cannot start: `nats_unreachable` or `grpc_address_unusable`."""


class DemoError(CeremonyError):
    """The demo cannot begin, or its engine has ended."""


def one_line(failure: BaseException | None) -> str:
    """The reason for which a worker has ended, on one line."""
    return " ".join((str(failure) or type(failure).__name__).split()) if failure else "a part of it has ended"
