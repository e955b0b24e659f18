"""One version of a model in memory: loaded as TensorFlow Serving loads it, run by tensor names.

Loading is `tf.compat.v1.saved_model.loader.load`: a graph, a session, the restore and init ops. Running
is a session callable over feeds and fetches, which checks nothing that the C++ session would not and
costs a tenth of `Session.run`.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.framework import op_def_registry

from serving import memory, protos
from serving.modelserver.signature import Signature
from serving.modelserver.status import (
    Code,
    StatusError,
    detached,
    from_exception,
    invalid_argument,
    not_found,
)
from serving.tensor_json import short_name

logger = logging.getLogger(__name__)

MAX_CALLABLES = 64  # per servable; clients choose the outputs, so the number must be bounded


# Stateful in TensorFlow's registry, but they keep nothing from one run to the next: calls of functions, whose
# own ops are checked; saving and restoring, which no signature runs; and assertions.
_KEEP_NOTHING = {
    "StatefulPartitionedCall", "StatefulIf", "StatefulWhile", "SaveV2", "RestoreV2", "ShardedFilename",
    "MergeV2Checkpoints", "Assert",
}  # fmt: skip

SHARED_POOL, CALLERS_THREAD = 0, -1  # `RunOptions.inter_op_thread_pool`

Key = tuple[tuple[str, ...], tuple[str, ...]]  # the feeds and the fetches of a callable


class _Callable(NamedTuple):
    """What runs the graph, and the types of its feeds and its fetches."""

    run: Callable[..., list[Any]]
    feed_types: list[np.dtype[Any]]
    fetch_types: list[np.dtype[Any]]


@dataclass(frozen=True)
class LoadOptions:
    """How models are loaded.

    Attributes:
        tags: the tags of the graph to load.
        intra_op_threads: threads within one op; 0 lets TensorFlow choose.
        inter_op_threads: ops of one run that may run at once; 0 means one, in the caller's own thread: with
            as many callers as cores, handing ops to another thread only costs time (a tenth of a small
            ResNet's).
    """

    tags: tuple[str, ...] = ("serve",)
    intra_op_threads: int = 0
    inter_op_threads: int = 0


class Session:
    """A loaded SavedModel.

    Attributes:
        signatures: by name.
        keeps_state: whether a run may leave something behind, or find it: variables, tables, random numbers.
    """

    def __init__(self, path: Path, options: LoadOptions) -> None:
        config = config_pb2.ConfigProto(
            intra_op_parallelism_threads=options.intra_op_threads,
            inter_op_parallelism_threads=options.inter_op_threads,
        )
        # As in the original: otherwise the session keeps another copy of the graph for each callable.
        config.experimental.disable_output_partition_graphs = True
        # Threads may spin for a moment before they sleep, as is TensorFlow's default: where waking one is
        # expensive, as on a virtual machine, sleeping at each op makes a single ResNet-50 call 3 ms longer.
        self._inter_op_thread_pool = SHARED_POOL if options.inter_op_threads > 0 else CALLERS_THREAD
        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        self._callables: OrderedDict[Key, _Callable] = OrderedDict()
        self._lock = threading.Lock()
        try:
            with self._graph.as_default():
                meta_graph = _load(self._session, path, options.tags)
            self.keeps_state = _keeps_state(meta_graph.graph_def)
            self.signatures: dict[str, Signature] = {
                name: Signature.read(protos.SignatureDef.FromString(signature.SerializeToString()))
                for name, signature in meta_graph.signature_def.items()
            }
        except Exception as error:
            failure = detached(error)
        else:
            return
        self.close()  # only now: while it is handled, the error holds what is to be freed
        raise failure

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Run the graph once.

        Args:
            feeds: tensor name -> value, of the tensor's own type.
            fetches: tensor names, without repetition.

        Raises:
            StatusError: with TensorFlow's code and text.
        """
        names = tuple(sorted(feeds))
        call, feed_types, fetch_types = self._callable((names, tuple(fetches)))
        for index, (name, expected) in enumerate(zip(names, feed_types, strict=True)):
            given = feeds[name].dtype
            if given != expected:
                raise invalid_argument(
                    f"Expects arg[{index}] to be {_word(expected)} but {_word(given)} is provided"
                )
        try:
            outputs = call(*[feeds[name] for name in names])
        except tf.errors.OpError as error:
            raise StatusError(Code(error.error_code), error.message) from error
        except UnicodeDecodeError as error:  # TensorFlow's message quotes bytes that are not text
            raise invalid_argument(error.object.decode(errors="replace")) from error
        except (ValueError, TypeError) as error:
            raise invalid_argument(str(error)) from error
        return [_as_array(output, dtype) for output, dtype in zip(outputs, fetch_types, strict=True)]

    def _callable(self, key: Key) -> _Callable:
        """What runs the graph with these feeds and fetches."""
        with self._lock:
            found = self._callables.get(key)
            if found is None:
                found = self._callables[key] = self._make_callable(*key)
                if len(self._callables) > MAX_CALLABLES:
                    self._callables.popitem(last=False)
            else:
                self._callables.move_to_end(key)
            return found

    def _make_callable(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> _Callable:
        options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
        options.run_options.inter_op_thread_pool = self._inter_op_thread_pool
        try:
            feed_types = self._types(feeds)
            call = self._session._make_callable_from_options(options)
            return _Callable(call, feed_types, self._types(fetches))
        except tf.errors.OpError as error:
            raise StatusError(Code(error.error_code), error.message) from error
        except (KeyError, ValueError) as error:
            raise not_found(f"FeedInputs: unable to find feed output: {error}") from error

    def _types(self, names: Sequence[str]) -> list[np.dtype[Any]]:
        """The types of tensors of the graph, as numpy dtypes.

        Raises:
            KeyError, ValueError: one is not there.
            StatusError: one holds what no array can: a resource, such as a table, or a variant.
        """
        # To the runtime the name of an op is also the name of its first output.
        full_names = [name if ":" in name else f"{name}:0" for name in names]
        tensors = [self._graph.get_tensor_by_name(name) for name in full_names]
        for tensor in tensors:
            if tensor.dtype in (tf.resource, tf.variant):
                raise invalid_argument(f"Tensor {tensor.name} is a {tensor.dtype.name}, which no array holds")
        return [np.dtype(tensor.dtype.as_numpy_dtype) for tensor in tensors]

    def close(self) -> None:
        """Free the session and its graph."""
        with self._lock:
            self._callables.clear()
        self._session.close()
        del self._session, self._graph  # a session keeps its graph, closed or not
        gc.collect()  # a graph is full of cycles, and may hold hundreds of megabytes
        memory.trim()  # otherwise malloc keeps what lies between blocks that other versions hold


def _keeps_state(graph: Any) -> bool:
    """Whether a GraphDef, its functions included, has an op that keeps state."""
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    own = {function.signature.name for function in graph.library.function}
    for op in {node.op for node in nodes} - own - _KEEP_NOTHING:
        registered = op_def_registry.get(op)
        if registered is None or registered.is_stateful:
            return True
    return False


def _as_array(output: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """One tensor's value. The session gives quantised numbers as plain ones, and a scalar string as bytes,
    which numpy would cut at NULs.
    """
    if not isinstance(output, bytes):
        array = np.asarray(output)
        return array if array.dtype == dtype else array.view(dtype)
    array = np.empty((), object)
    array[()] = output
    return array


@cache
def data_type_of(dtype: np.dtype[Any]) -> int:
    """The `tensorflow.DataType` that arrays of `dtype` hold, even one that numpy itself lacks (bfloat16)."""
    return int(tf.as_dtype(dtype).as_datatype_enum)


def _word(dtype: np.dtype[Any]) -> str:
    """`float` for float32, as C++ prints types."""
    return short_name(data_type_of(dtype))


def _load(session: Any, path: Path, tags: Sequence[str]) -> Any:
    """Load a SavedModel into `session`; raises StatusError in the original's words."""
    if not any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        raise not_found(
            f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}. Check that "
            "the directory exists and that you have the right permissions for accessing it."
        )
    try:
        return tf.compat.v1.saved_model.loader.load(session, list(tags), str(path))
    except tf.errors.OpError as error:
        raise StatusError(Code(error.error_code), error.message) from error
    except (OSError, DecodeError) as error:
        raise StatusError(Code.DATA_LOSS, f"Can't parse {path / 'saved_model.pb'} as binary proto") from error
    except RuntimeError as error:
        if "tags" not in str(error):
            raise from_exception(error) from error
        raise not_found(
            f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }}. To inspect "
            "available tag-sets in the SavedModel, please use the SavedModel CLI: `saved_model_cli`"
        ) from error
