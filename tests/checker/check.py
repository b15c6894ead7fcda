"""Judges a run: single messages, the path of each ceremony, and its row in the gRPC answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tests.checker.envelopes import Event, event_of, message_violations, stream_violations
from tests.checker.path import CONCLUDED, Path
from tests.checker.recording import Definition, Instance, Message, Run, Start, definition_hash
from tests.checker.stores import store_violations
from tests.checker.violations import Violation

ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
REFUSED = "ceremony.start.refused"


def check_run(run: Run) -> list[Violation]:
    """All violations of a run, in the order of the stream, then those about the whole run, then those of its stores."""
    found = check(run.messages, run.definitions, run.starts, run.instances)
    for store, stored in run.stores.items():
        found += store_violations(store, stored, run.instances)
    return found


def check(
    messages: Sequence[Message],
    definitions: Mapping[str, str],
    starts: Sequence[Start],
    instances: Sequence[Instance],
) -> list[Violation]:
    """`messages` is the whole stream CEREMONY in its order; `definitions` holds YAML texts by name."""
    found = [violation for message in messages for violation in message_violations(message)]
    found += stream_violations(messages)
    by_name = {name: Definition.read(text) for name, text in definitions.items()}
    by_hash = {definition_hash(text): by_name[name] for name, text in definitions.items()}
    events: dict[str, list[Event]] = defaultdict(list)
    for message in messages:
        event = event_of(message)
        if event is not None:
            events[event.instance_id].append(event)
    shown = {instance.instance_id: instance for instance in instances}
    accepted = {start.instance_id: start for start in starts}
    for instance_id in dict.fromkeys([*accepted, *events, *shown]):
        one = _Ceremony(instance_id, events[instance_id], accepted.get(instance_id), shown.get(instance_id))
        found += one.violations(by_name, by_hash)
    return sorted(found, key=lambda violation: (violation.sequence or len(messages) + 1, violation))


class _Ceremony:
    """One ceremony: its events, its start, and its row in the gRPC answers."""

    def __init__(self, instance_id: str, events: list[Event], start: Start | None, shown: Instance | None) -> None:
        self.instance_id = instance_id
        self.refused = any(event.subject == REFUSED for event in events)
        self.events = [event for event in events if event.subject != REFUSED]
        self.start = start
        self.shown = shown

    def violations(self, by_name: Mapping[str, Definition], by_hash: Mapping[str, Definition]) -> Iterator[Violation]:
        begun = [event for event in self.events if event.subject == "ceremony.started"]
        if not begun and self.start is not None and not self.refused:
            yield self._found("start_lost", "it was accepted, and there is neither its start nor its refusal")
        if not self.events:
            return
        yield from self._correlation()
        definition = self._definition(begun, by_name, by_hash)
        if definition is None:
            yield self._found("definition_unknown", "its definition is none of those given")
            return
        path = Path(self.instance_id, definition)
        for event in self.events:
            path.follow(event)
        yield from path.violations
        yield from self._against_row(path)

    def _found(self, rule: str, text: str, sequence: int = 0) -> Violation:
        return Violation(rule, self.instance_id, sequence, text)

    def _definition(
        self, begun: list[Event], by_name: Mapping[str, Definition], by_hash: Mapping[str, Definition]
    ) -> Definition | None:
        """The definition by the pinned hash of a start or row, else by name."""
        payload = begun[0].payload if begun else {}
        hashes = [str(payload.get("definition_hash")), self.shown.definition_hash if self.shown else ""]
        names = [str(payload.get("definition_name")), *(x.definition_name for x in (self.shown, self.start) if x)]
        known = [by_hash[key] for key in hashes if key in by_hash] + [by_name[key] for key in names if key in by_name]
        return known[0] if known else None

    def _correlation(self) -> Iterator[Violation]:
        wanted = self.events[0].correlation_id
        if self.start is not None:
            wanted = self.start.correlation_id or self.instance_id
        for event in self.events:
            if event.correlation_id != wanted:
                text = f"its correlation id is {event.correlation_id!r}, the ceremony's is {wanted!r}"
                yield self._found("correlation_differs", text, event.sequence)
        if self.shown is not None and self.shown.correlation_id != wanted:
            yield self._found("correlation_differs", f"the service shows {self.shown.correlation_id!r}, not {wanted!r}")

    def _against_row(self, path: Path) -> Iterator[Violation]:
        if path.in_terminal_state and not path.ended:
            yield self._found("end_lost", f"it reached {path.state} without a terminal event")
        shown = self.shown
        if shown is None:
            yield self._found("instance_missing", "it has started, and the service does not know it")
            return
        if shown.current_state != path.state:
            text = f"its events lead to {path.state}, the service shows {shown.current_state}"
            yield self._found("state_differs", text)
        if shown.version and shown.version < path.version:
            yield self._found("version_behind", f"the service shows version {shown.version}, an event {path.version}")
        yield from self._status(path, shown)

    def _status(self, path: Path, shown: Instance) -> Iterator[Violation]:
        if shown.status not in ENDED:
            if path.ended or path.paused != (shown.status == "PAUSED"):
                last = path.ended or ("PAUSED" if path.paused else "not paused")
                yield self._found("status_differs", f"its events say {last}, the service shows {shown.status}")
            if shown.status != "PAUSED" and not shown.open_gates and not shown.waiting_for:
                yield self._found("stuck", f"it is {shown.status} in {shown.current_state} and waits for nothing")
            return
        if not path.ended:
            yield self._found("end_lost", f"the service shows {shown.status} without a terminal event")
        elif path.ended != shown.status:
            yield self._found("status_differs", f"its events say {path.ended}, the service shows {shown.status}")
        for step in sorted({*path.steps, *shown.step_status}):
            last, status = path.steps.get(step, "PENDING"), shown.step_status.get(step, "PENDING")
            if last != status and (last in CONCLUDED or status in CONCLUDED):
                text = f"events say that {step} is {last}, the service shows {status}"
                yield self._found("step_status_differs", text)
