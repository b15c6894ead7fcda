"""The page of the gRPC service: its calls and messages with the comments of the proto file."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from scripts.reference_pages.markdown import code, page, prose, table
from scripts.reference_pages.source import ROOT

PROTO = "fleet/planning_ceremony/v1/planning_ceremony.proto"
# Numbers of fields in descriptor.proto, of which the paths of comments are made.
MESSAGES, SERVICES, FIELDS, METHODS = 4, 6, 2, 2
SYNTAX = 12
WORDS = {
    FieldDescriptorProto.TYPE_STRING: "string",
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_INT32: "int32",
    FieldDescriptorProto.TYPE_INT64: "int64",
    FieldDescriptorProto.TYPE_UINT32: "uint32",
    FieldDescriptorProto.TYPE_UINT64: "uint64",
    FieldDescriptorProto.TYPE_DOUBLE: "double",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
}
Comments = Mapping[tuple[int, ...], str]


def grpc_page() -> str:
    file = _described()
    comments = _comments(file)
    link = f"[{PROTO.rpartition('/')[2]}](../../proto/{PROTO})"
    introduction = (
        f"Made from {link}. Errors are statuses whose message begins with a code of [this list](errors.md#calls). "
        "[The promises](../specification.md#14-grpc) behind the calls are numbered rules."
    )
    head = comments.get((SYNTAX,), "")
    paragraphs = "\n\n".join(prose(part) for part in head.split("\n\n"))
    return page("gRPC", introduction, paragraphs, *_calls(file, comments), "## Messages", *_messages(file, comments))


def _described() -> FileDescriptorProto:
    """The proto file with its comments, which the generated code does not have."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "described"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'proto'}"]
        options = ["--include_source_info", f"--descriptor_set_out={output}", PROTO]
        subprocess.run([*command, *options], check=True)
        return FileDescriptorSet.FromString(output.read_bytes()).file[0]


def _comments(file: FileDescriptorProto) -> Comments:
    found = {}
    for place in file.source_code_info.location:
        detached = "\n\n".join(place.leading_detached_comments)
        text = place.leading_comments or place.trailing_comments or detached
        if text:
            found[tuple(place.path)] = text
    return found


def _calls(file: FileDescriptorProto, comments: Comments) -> Iterator[str]:
    for number, service in enumerate(file.service):
        yield f"## Service `{file.package}.{service.name}`"
        for place, method in enumerate(service.method):
            yield _call(method, comments.get((SERVICES, number, METHODS, place), ""))


def _call(method: MethodDescriptorProto, text: str) -> str:
    given, answer = (name.rpartition(".")[2] for name in (method.input_type, method.output_type))
    stream = "a stream of " if method.server_streaming else ""
    links = f"[{given}](#{given.lower()}) → {stream}[{answer}](#{answer.lower()})"
    return f"### {method.name}\n\n{links}\n\n{prose(text)}"


def _messages(file: FileDescriptorProto, comments: Comments) -> Iterator[str]:
    for number, message in enumerate(file.message_type):
        yield _message(message, comments, (MESSAGES, number))


def _message(message: DescriptorProto, comments: Comments, path: tuple[int, ...]) -> str:
    maps = {inner.name: inner for inner in message.nested_type if inner.options.map_entry}
    rows = [
        (code(field.name), str(field.number), _type(field, maps), prose(comments.get((*path, FIELDS, place), "")))
        for place, field in enumerate(message.field)
    ]
    text = prose(comments.get(path, ""))
    fields = table(("field", "number", "type", "meaning"), rows) if rows else "It has no fields.\n"
    return f"### {message.name}\n\n" + (f"{text}\n\n" if text else "") + fields


def _type(field: FieldDescriptorProto, maps: Mapping[str, DescriptorProto]) -> str:
    name = field.type_name.rpartition(".")[2]
    if name in maps:
        key, value = maps[name].field
        return f"map of {_type(key, {})} to {_type(value, {})}"
    if field.type_name.startswith(".google."):
        word = code(field.type_name.removeprefix("."))
    else:
        word = f"[{name}](#{name.lower()})" if name else WORDS[field.type]
    repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
    return f"repeated {word}" if repeated else f"optional {word}" if field.proto3_optional else word
