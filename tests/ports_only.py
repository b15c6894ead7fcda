"""Finds uses of the clock, of randomness, of the event loop's own timing and of clients outside the modules that may.

Tests run the engine under a fake clock and kill it at every await. Code that slept, started tasks or read the time
without the ports would run on the host's clock instead. Used by `test_ports_only.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

PACKAGES = ("ports", "tables", "steps", "streams", "bridge", "ceremony")
CLOCK = frozenset({"time", "sched", "timeit"})
CHANCE = frozenset({"random", "secrets", "uuid"})
CLIENTS = frozenset(
    {"nats", "grpc", "grpc_health", "grpc_reflection", "aiokafka", "faust", "mode", "redis", "neo4j", "opentelemetry"}
)
THREADS = frozenset({"threading", "concurrent", "multiprocessing", "_thread"})
STORES = frozenset({"sqlite3", "socket", "urllib.request", "http.client"})
# Modules whose import is a finding, submodules included.
MODULES = CLOCK | CHANCE | CLIENTS | THREADS | STORES

# Names that are findings in any use, by their full name.
CALLS = frozenset(
    {
        "asyncio.create_task",
        "asyncio.ensure_future",
        "asyncio.run_coroutine_threadsafe",
        "asyncio.sleep",
        "asyncio.TaskGroup",
        "asyncio.timeout",
        "asyncio.timeout_at",
        "asyncio.to_thread",
        "asyncio.wait_for",
        "datetime.date.today",
        "datetime.datetime.now",
        "datetime.datetime.today",
        "datetime.datetime.utcnow",
        "os.urandom",
        "tempfile.mktemp",
    }
)

# Methods of an event loop (or of a task group) that bypass the Clock port, on any variable.
LOOP_METHODS = frozenset({"call_at", "call_later", "create_task", "run_in_executor"})

# Calls that are findings only with a `timeout`; without one they wait for tasks, not for the clock.
MODULE_TIMEOUTS = frozenset({"asyncio.wait", "asyncio.as_completed"})


# A finding unless its arguments are names of tasks: it makes a task of a coroutine, bypassing the Clock port.
GATHER = "asyncio.gather"


@dataclass(frozen=True, slots=True)
class Finding:
    """One use: its place, and the name as a person would look it up."""

    path: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.name}"


def findings(source: str, path: str) -> list[Finding]:
    """Return all uses in one module's source."""
    tree = ast.parse(source, path)
    names = dict(_imported(tree))
    found = {Finding(path, line, name) for line, name in _uses(tree, names)}
    return sorted(found, key=lambda finding: (finding.line, finding.name))


def findings_below(root: Path, packages: tuple[str, ...] = PACKAGES) -> Iterator[Finding]:
    """Yield all uses in the packages of a checkout."""
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            relative = path.relative_to(root).as_posix()
            yield from findings(path.read_text(), relative)


def forbidden(found: Finding, allowed: Mapping[str, frozenset[str]]) -> bool:
    """Return whether no entry of the allow-list, path pattern → names, covers a finding."""
    return not any(
        fnmatchcase(found.path, pattern) and (found.name in names or found.name.split(".")[0] in names)
        for pattern, names in allowed.items()
    )


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Local name → full name, for every import in the module, also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _uses(tree: ast.Module, names: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, module) for module in _modules(node) if _is_forbidden(module))
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, name) for name in _called(node, names))
        elif isinstance(node, ast.Name | ast.Attribute) and (full := _full_name(node, names)) in CALLS:
            yield node.lineno, full


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not node.module or node.level:
        return []
    below = [f"{node.module}.{alias.name}" for alias in node.names]
    return [node.module] if _is_forbidden(node.module) else below


def _is_forbidden(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in MODULES)


def _called(node: ast.Call, names: Mapping[str, str]) -> Iterator[str]:
    full = _full_name(node.func, names)
    if full in MODULE_TIMEOUTS and any(keyword.arg in {"timeout", None} for keyword in node.keywords):
        yield f"{full}(timeout=)"
    if full == GATHER and not all(_is_named(argument) for argument in node.args):
        yield GATHER
    if isinstance(node.func, ast.Attribute) and node.func.attr in LOOP_METHODS and full not in CALLS:
        yield f"loop.{node.func.attr}"
    if full in {"__import__", "importlib.import_module"} and node.args and isinstance(node.args[0], ast.Constant):
        yield from (module for module in [str(node.args[0].value)] if _is_forbidden(module))


def _is_named(argument: ast.expr) -> bool:
    value = argument.value if isinstance(argument, ast.Starred) else argument
    return isinstance(value, ast.Name | ast.Attribute)


def _full_name(node: ast.expr, names: Mapping[str, str]) -> str:
    """Return `dt.now` as `datetime.datetime.now`, by the module's imports; empty if it is no plain dotted name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = _full_name(node.value, names)
        return f"{owner}.{node.attr}" if owner else ""
    return ""
