"""Write the descriptor sets: `python -m protos.generate [FOLDER]` (by default, this one).

TensorFlow Serving's messages are read from the installed `tensorflow-serving-api`, so this needs
TensorFlow; nothing that serves does. Output is deterministic: files in topological order, source
information dropped.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from grpc_tools import protoc

HERE = Path(__file__).parent

TENSORFLOW_SERVING_MODULES = (
    "tensorflow_serving.apis.prediction_service_pb2",
    "tensorflow_serving.apis.model_service_pb2",
    "tensorflow_serving.apis.prediction_log_pb2",
    "tensorflow_serving.config.model_server_config_pb2",
)


def tensorflow_serving_set() -> descriptor_pb2.FileDescriptorSet:
    """The API's files with all that they import, each after its imports."""
    found: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def visit(file: FileDescriptor) -> None:
        if file.name in found:
            return
        for dependency in sorted(file.dependencies, key=lambda imported: imported.name):
            visit(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        found[file.name] = proto

    for module in TENSORFLOW_SERVING_MODULES:
        visit(importlib.import_module(module).DESCRIPTOR)
    return descriptor_pb2.FileDescriptorSet(file=found.values())


def write(folder: Path = HERE) -> None:
    """Write `tensorflow_serving.binpb` and `sluice.binpb` into `folder`."""
    serialized = tensorflow_serving_set().SerializeToString(deterministic=True)
    (folder / "tensorflow_serving.binpb").write_bytes(serialized)
    sources = sorted(str(path.relative_to(HERE)) for path in HERE.rglob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={HERE}",
        f"--descriptor_set_out={folder / 'sluice.binpb'}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc refused the sources above")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
