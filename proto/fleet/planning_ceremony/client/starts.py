"""Starts that the caller does not wait for: accepted into a bounded queue, sent by threads, repeated until taken.

Each attempt of a start is one turn of a thread. A start that has to wait for its next attempt waits in the queue, so it
keeps no thread, and delays no start of a partition that is served. The calls block, for at the exit of the interpreter,
when what is left is sent, no new thread can be made.
"""

from __future__ import annotations

import atexit
import heapq
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
from fleet.planning_ceremony.client.backoff import pause_before_next
from fleet.planning_ceremony.client.errors import PlanningCeremonyError
from fleet.planning_ceremony.client.outbox import StartOutbox, StoredStart
from fleet.planning_ceremony.client.stats import StartStats
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

log = logging.getLogger("fleet.planning_ceremony")

# Calls under way at a time.
LANES = 8
# Timeout of one attempt: an engine that is reached answers within three seconds, or ends the call.
ATTEMPT_SECONDS = 10.0
# Time at the exit of the interpreter to send what is left, and for threads to end once their calls are cancelled.
EXIT_SECONDS, JOIN_SECONDS = 5.0, 2.0

# The longest wait of one turn, of which Python's own bound is some centuries; a longer one is waited for in several.
LONGEST_WAIT_SECONDS = 3_600.0
# Errors of Python and protobuf for arguments that no request can be made of.
ARGUMENT_ERRORS = (TypeError, ValueError, AttributeError, OverflowError, RecursionError)

# Sends an encoded request with a timeout. Raises PlanningCeremonyError.
SendStart = Callable[[bytes, float], None]


@dataclass(slots=True, order=True)
class QueuedStart:
    """One accepted start; sorted by the time of its next attempt."""

    due: float
    number: int
    request_id: str = field(compare=False)
    request: bytes = field(compare=False)
    expires: float = field(compare=False)
    """Monotonic time, as `due`."""
    attempts: int = field(compare=False, default=0)


class Starts:
    """Sends the starts of one client; `offer` may be called by any thread, and raises nothing but for its arguments."""

    def __init__(
        self,
        send: SendStart,
        cancel_calls: Callable[[], None],
        *,
        queue_size: int,
        queue_bytes: int,
        outbox: StartOutbox | None = None,
    ) -> None:
        self._send, self._cancel_calls = send, cancel_calls
        self._queue_size, self._queue_bytes = queue_size, queue_bytes
        self._outbox = outbox
        self._changed = threading.Condition()
        self._queue: list[QueuedStart] = []
        self._pending: dict[str, QueuedStart] = {}
        """By request id, those under way included."""
        self._bytes = self._numbers = self._idle = 0
        self._threads: list[threading.Thread] = []
        self._closing = self._stopped = False
        self._accepted = self._sent = 0
        self._refused: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._process = os.getpid()
        if outbox is not None:
            self._restore(outbox)

    # -- called by the client

    def offer(self, request: pb.StartPlanningCeremonyRequest, deadline: float) -> bool:
        """Accept a start, or count why not. Raises ValueError for a deadline that is no number of seconds."""
        if not deadline > 0:
            raise ValueError("a deadline is a number of seconds above 0")
        if self._forked():
            self._dropped["forked"] += 1
            return False
        encoded = request.SerializeToString()
        reason = self._reserve(request.request_id, encoded, deadline)
        if not reason and self._outbox is not None:
            reason = self._store(self._outbox, request.request_id, encoded, deadline)
        if reason:
            self._drop(reason)
            return False
        self._enqueue(request.request_id)
        return True

    def refuse(self, error: Exception) -> None:
        """Count a start whose arguments cannot be sent; their values are not logged."""
        if self._forked():
            return
        code = "arguments_invalid" if isinstance(error, ARGUMENT_ERRORS) else "client_failed"
        code = error.code if isinstance(error, PlanningCeremonyError) else code
        with self._changed:
            self._refused[code] += 1
        log.warning("start not sent: %s (%s)", code, type(error).__name__)

    def flush(self, timeout: float) -> bool:
        """Wait until nothing is pending; False if something still is."""
        if self._forked():
            return True
        with self._changed:
            self._changed.wait_for(lambda: not self._pending or self._stopped, min(timeout, threading.TIMEOUT_MAX))
            return not self._pending

    def close(self, timeout: float) -> bool:
        """Accept no more, flush, and end. What is left is dropped, or stays in the outbox; False if something is."""
        if self._forked():
            return True
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not self._pending or self._stopped, min(timeout, threading.TIMEOUT_MAX))
            if self._stopped:
                return not self._pending
            self._stopped = True
            self._changed.notify_all()
        self._cancel_calls()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
        atexit.unregister(self._at_exit)
        self._abandon()
        return not self._pending

    @property
    def stats(self) -> StartStats:
        if self._forked():
            return StartStats(dropped=dict(self._dropped))
        with self._changed:
            return StartStats(self._accepted, self._sent, len(self._pending), dict(self._refused), dict(self._dropped))

    def _forked(self) -> bool:
        """Return whether this is a forked child: it has no threads, and a lock may be held for ever."""
        return os.getpid() != self._process

    # -- accepting

    def _restore(self, outbox: StartOutbox) -> None:
        """Take up what an earlier process left."""
        now, today = time.monotonic(), time.time()
        for stored in outbox.restored:
            deadline = math.inf if stored.deadline is None else stored.deadline
            left = min(max(deadline - (today - stored.accepted_at), 0.0), deadline)  # clocks of hosts are set
            self._add(stored.request_id, stored.request, now + left)
            self._enqueue(stored.request_id)
        outbox.restored.clear()
        if outbox.unreadable:
            self._drop("unreadable", outbox.unreadable)

    def _reserve(self, request_id: str, encoded: bytes, deadline: float) -> str:
        """Take room in the queue; return the reason why there is none."""
        with self._changed:
            if self._closing:
                return "closed"
            if len(self._pending) >= self._queue_size or self._bytes + len(encoded) > self._queue_bytes:
                return "full"
            self._add(request_id, encoded, time.monotonic() + deadline)
            return ""

    def _add(self, request_id: str, encoded: bytes, expires: float) -> None:
        self._numbers += 1
        self._accepted += 1
        self._bytes += len(encoded)
        self._pending[request_id] = QueuedStart(0.0, self._numbers, request_id, encoded, expires)

    def _store(self, outbox: StartOutbox, request_id: str, encoded: bytes, deadline: float) -> str:
        """Write a start to the outbox; return the reason why it could not be."""
        try:
            kept = StoredStart(request_id, encoded, time.time(), None if deadline == math.inf else deadline)
            reason = "" if outbox.put(kept) else "full"
        except OSError as error:
            log.warning("the outbox cannot be written: %s", error.strerror)
            reason = "outbox"
        if reason:
            with self._changed:
                self._accepted -= 1
                self._remove(request_id)
                self._changed.notify_all()
        return reason

    def _enqueue(self, request_id: str) -> None:
        with self._changed:
            entry = self._pending.get(request_id)
            if entry is None or self._stopped:
                return
            self._push(entry)
            # A woken thread counts as idle until it runs, so the queue, with what waits for its time, is counted too.
            if len(self._queue) > self._idle and len(self._threads) < LANES:
                self._start_thread()

    def _push(self, entry: QueuedStart) -> None:
        """Queue a start, and have every idle thread look: a single wakeup may reach a caller of `flush`."""
        heapq.heappush(self._queue, entry)
        self._changed.notify_all()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"ceremony-starts-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there are too many threads: the next start tries again
            return
        if not self._threads:
            atexit.register(self._at_exit)
        self._threads.append(thread)

    # -- sending

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            left = entry.expires - time.monotonic()
            if left <= 0:
                self._settle(entry, self._dropped, "deadline")
                continue
            try:
                self._send(entry.request, min(left, ATTEMPT_SECONDS))
            except PlanningCeremonyError as error:
                self._failed(entry, error)
            except Exception as error:  # noqa: BLE001 - a thread that ends would send nothing more
                log.warning("a start could not be sent: %s", type(error).__name__)
                self._failed(entry, PlanningCeremonyError(grpc.StatusCode.UNKNOWN, "no call was made"))
            else:
                self._settle(entry)

    def _next(self) -> QueuedStart | None:
        """Wait for a start that is due; None at the end."""
        with self._changed:
            while not self._stopped:
                wait = self._queue[0].due - time.monotonic() if self._queue else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._queue)
                self._idle += 1
                self._changed.wait(None if wait is None else min(wait, LONGEST_WAIT_SECONDS))
                self._idle -= 1
        return None

    def _failed(self, entry: QueuedStart, error: PlanningCeremonyError) -> None:
        entry.attempts += 1
        now = time.monotonic()
        pause = pause_before_next(error, entry.attempts, entry.expires - now)
        if not error.transient:
            self._settle(entry, self._refused, error.code)
            named = error.details.instance_id if error.details.instance_id.isprintable() else ""
            named = named or "a ceremony"
            log.warning("start of %s refused: %s (request %s)", named, error.code, entry.request_id)
        elif pause is None:
            self._settle(entry, self._dropped, "deadline")
        else:
            with self._changed:
                entry.due = now + pause
                self._push(entry)

    def _settle(self, entry: QueuedStart, count: Counter[str] | None = None, key: str = "") -> None:
        """A start has ended: it counts as sent, or under this key."""
        self._forget_in_outbox(entry.request_id)
        with self._changed:
            if entry.request_id not in self._pending:
                return  # given up at the end
            if count is None:
                self._sent += 1
            else:
                count[key] += 1
            self._remove(entry.request_id)
            self._changed.notify_all()
            number = count[key] if count is self._dropped else 0
        self._log_dropped(key, number - 1, number)

    def _remove(self, request_id: str) -> None:
        entry = self._pending.pop(request_id)
        self._bytes -= len(entry.request)

    def _forget_in_outbox(self, request_id: str) -> None:
        if self._outbox is None:
            return
        try:
            self._outbox.settle(request_id)
        except OSError as error:  # it is sent again after a restart, and recognised by the engine
            log.warning("the outbox cannot be written: %s", error.strerror)

    # -- the end

    def _at_exit(self) -> None:
        self.close(EXIT_SECONDS)

    def _abandon(self) -> None:
        """Give up what is left; with an outbox the next process sends it."""
        with self._changed:
            left = len(self._pending)
            if self._outbox is None:
                self._pending.clear()
                self._bytes = 0
        if self._outbox is not None:
            self._outbox.close()
        elif left:
            self._drop("closed", left)

    def _drop(self, reason: str, count: int = 1) -> None:
        with self._changed:
            before = self._dropped[reason]
            self._dropped[reason] += count
        self._log_dropped(reason, before, before + count)

    def _log_dropped(self, reason: str, before: int, now: int) -> None:
        """Log the first dropped start of each reason, and then each time that the number has doubled."""
        if now > 0 and before.bit_length() != now.bit_length():
            log.warning("starts dropped (%s): %d so far", reason, now)
