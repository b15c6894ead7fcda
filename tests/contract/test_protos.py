"""The protos have the specified messages, and the generated code beside them is up to date."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as ceremony
from fleet.ray_executor.v1 import ray_executor_pb2 as ray
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

PROTO = Path(__file__).parents[2] / "proto"
INT32, INT64, BOOL = FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_BOOL

# The fields in the order of their numbers, from 1 on (specification 14.1, 15.1).
FIXED = {
    (ceremony, "StartPlanningCeremonyRequest"): "ceremony_id definition_name story_id correlation_id inputs step_ids "
    "requested_by",
    (ceremony, "StartPlanningCeremonyResponse"): "instance_id status message",
    (ceremony, "GetPlanningCeremonyInstanceRequest"): "instance_id",
    (ceremony, "GetPlanningCeremonyInstanceResponse"): "ceremony success message",
    (ceremony, "ListPlanningCeremonyInstancesRequest"): "state_filter definition_filter story_id limit offset",
    (ceremony, "ListPlanningCeremonyInstancesResponse"): "ceremonies total_count success message",
    (ceremony, "PlanningCeremonyInstance"): "instance_id ceremony_id story_id definition_name current_state status "
    "correlation_id step_status step_outputs created_at updated_at",
    (ray, "ExecuteDeliberationRequest"): "task_id task_description role constraints agents vllm_url vllm_model",
    (ray, "ExecuteBacklogReviewDeliberationRequest"): "task_id task_description role constraints agents vllm_url "
    "vllm_model",
    (ray, "ExecuteDeliberationResponse"): "task_id deliberation_id status message",
    (ray, "TaskConstraints"): "story_id plan_id timeout_seconds max_retries metadata",
    (ray, "BacklogReviewTaskConstraints"): "story_id timeout_seconds max_retries metadata",
    (ray, "Agent"): "id role model prompt_template",
    (ray, "GetDeliberationStatusRequest"): "deliberation_id",
    (ray, "GetDeliberationStatusResponse"): "status result error_message",
    (ray, "DeliberationResult"): "agent_id proposal reasoning score metadata",
    (ray, "GetStatusRequest"): "include_stats",
    (ray, "GetStatusResponse"): "status uptime_seconds stats",
    (ray, "RayExecutorStats"): "total active completed failed average_execution_time_ms",
    (ray, "GetActiveJobsRequest"): "",
    (ray, "GetActiveJobsResponse"): "jobs",
    (ray, "JobInfo"): "job_id name status submission_id role task_id start_time end_time runtime",
}  # fmt: skip

# Fields that are not strings, string maps or messages.
TYPES = {
    "limit": INT32, "offset": INT32, "total_count": INT32, "success": BOOL, "timeout_seconds": INT32,
    "max_retries": INT32, "score": FieldDescriptor.TYPE_FLOAT, "include_stats": BOOL, "uptime_seconds": INT64,
    "total": INT64, "active": INT64, "completed": INT64, "failed": INT64,
    "average_execution_time_ms": FieldDescriptor.TYPE_FLOAT,
}  # fmt: skip


def message(file: FileDescriptor, name: str) -> Descriptor:
    return file.message_types_by_name[name]


@pytest.mark.parametrize(("module", "name"), FIXED, ids=lambda value: value if isinstance(value, str) else "")
def test_fixed_messages_have_the_specified_names_numbers_and_types(module: object, name: str) -> None:
    """Existing clients depend on them; fields of the engine take the numbers after them."""
    # specification 14.1, 15.1
    fields = message(module.DESCRIPTOR, name).fields_by_number  # type: ignore[attr-defined]
    wanted = FIXED[module, name].split()  # type: ignore[index]
    assert [fields[number].name for number in range(1, len(wanted) + 1)] == wanted
    for number in range(1, len(wanted) + 1):
        field = fields[number]
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            assert field.type == TYPES.get(field.name, FieldDescriptor.TYPE_STRING), field.name


def test_services_and_methods_have_the_specified_names() -> None:
    """The names of service and method form the path of every call."""
    # specification 14.1, 15.1
    assert list(ceremony.DESCRIPTOR.services_by_name["PlanningCeremonyProcessor"].methods_by_name)[:3] == [
        "StartPlanningCeremony", "GetPlanningCeremonyInstance", "ListPlanningCeremonyInstances"
    ]  # fmt: skip
    methods = ray.DESCRIPTOR.services_by_name["RayExecutorService"].methods
    assert {method.name: (method.input_type.name, method.output_type.name) for method in methods} == {
        "ExecuteDeliberation": ("ExecuteDeliberationRequest", "ExecuteDeliberationResponse"),
        "ExecuteBacklogReviewDeliberation": ("ExecuteBacklogReviewDeliberationRequest", "ExecuteDeliberationResponse"),
        "GetDeliberationStatus": ("GetDeliberationStatusRequest", "GetDeliberationStatusResponse"),
        "GetStatus": ("GetStatusRequest", "GetStatusResponse"),
        "GetActiveJobs": ("GetActiveJobsRequest", "GetActiveJobsResponse"),
    }
    assert ceremony.DESCRIPTOR.package == "fleet.planning_ceremony.v1"
    assert ray.DESCRIPTOR.package == "fleet.ray_executor.v1"


@pytest.mark.timeout(60)
def test_the_committed_code_equals_the_generated_code(tmp_path: Path) -> None:
    """After changing a proto run generate-protos.sh; only the locked version of grpcio-tools gives equal code.

    It runs in a copy of the folder, as people run it, and twice: the second run changes nothing.
    """
    copy = shutil.copytree(
        PROTO, tmp_path / "proto", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    )
    tree: list[dict[Path, bytes]] = []
    for _ in range(2):
        subprocess.run(
            [copy / "generate-protos.sh"], env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, check=True
        )
        tree.append({path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()})
    assert tree[0] == tree[1]
    generated = {path.relative_to(copy): path.read_text() for path in copy.rglob("*_pb2*.py*")}
    committed = {path.relative_to(PROTO): path.read_text() for path in PROTO.glob("fleet/*/v1/*_pb2*.py*")}
    assert sorted(generated) == sorted(committed)
    assert len(generated) == 8
    changed = [str(path) for path in generated if generated[path] != committed[path]]
    assert not changed, f"run proto/generate-protos.sh: {changed} are not what the protos generate"


@pytest.mark.timeout(60)
def test_the_client_distribution_imports_nothing_of_the_engine() -> None:
    """The Planning Service imports it without Faust, and without the engine's general top-level names."""
    # specification 14.19
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import fleet.planning_ceremony.client;"
        "import fleet.ray_executor.v1.ray_executor_pb2_grpc;"
        "print({name.partition('.')[0] for name in sys.modules}"
        " & {'faust', 'aiokafka', 'nats', 'pydantic', 'tables', 'steps', 'streams', 'bridge'})"
    )
    done = subprocess.run([sys.executable, "-c", program, PROTO], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
