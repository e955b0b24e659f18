"""How a version is loaded: its session, its warm-up requests, then the batching in front."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from serving.cores import usable_cores
from serving.modelserver.batching import BatchingOptions, BatchScheduler
from serving.modelserver.batching_servable import BatchingServable
from serving.modelserver.flags import Flags
from serving.modelserver.manager import Model, Servable
from serving.modelserver.metrics import Metrics
from serving.modelserver.servable import LoadOptions, Session
from serving.modelserver.status import Code, detached, invalid_argument
from serving.modelserver.warmup import WARMUP_FILE, DamagedFile, warm_up
from serving.modelserver.widths import Cores, TwoWidths

logger = logging.getLogger(__name__)

# Larger models have larger ops, which gain from running on all cores; and two sessions hold a model twice.
MOST_BYTES_TWICE = 32 * 2**20
# With more cores each model would have as many threads of its own, for a gain that was measured on two.
MOST_CORES = 8


@dataclass(frozen=True)
class Loading:
    """Loads servables, all in the same way.

    Attributes:
        options: how sessions are made.
        metrics: where loads are counted.
        warmup_iterations: how often a warm-up request is run; 0 means no warm-up.
        check_method_names: as for requests.
        scheduler: runs batches; None means no batching.
        cores: what small models run on, narrow or wide; None means as the options say.
    """

    options: LoadOptions
    metrics: Metrics
    warmup_iterations: int
    check_method_names: bool
    scheduler: BatchScheduler | None
    cores: Cores | None = None

    @classmethod
    def from_flags(cls, flags: Flags, batching: BatchingOptions | None, metrics: Metrics) -> Loading:
        """As the command line says; raises StatusError for flags that contradict each other."""
        count = usable_cores()
        return cls(
            LoadOptions(tuple(flags.saved_model_tags.split(",")), *_parallelism(flags)),
            metrics,
            max(flags.num_request_iterations_for_warmup, 1) if flags.enable_model_warmup else 0,
            flags.enable_signature_method_name_check,
            BatchScheduler(batching) if batching is not None else None,
            Cores(count) if may_load_twice(flags, count) else None,
        )

    def load(self, name: str, version: int, path: Path) -> Servable:
        """Load version `version` of model `name` from `path`; raises StatusError."""
        started = time.perf_counter()
        status = "fail"
        try:
            sessions = self._sessions(path)
            status = "success"
        finally:
            self.metrics.load_attempt_count.add(str(path), status)
            self.metrics.load_latency.add(str(path), by=_microseconds_since(started))
        try:
            if self.warmup_iterations:
                self._warm_up(name, version, sessions, path)
        except Exception as error:
            failure = detached(error)
        else:
            return self._servable(sessions)
        for session in sessions:  # only now: while it is handled, the error holds what is to be freed
            session.close()
        raise failure

    def _servable(self, sessions: Sequence[Session]) -> Servable:
        """A model's sessions, wrapped as requests reach them."""
        servable: Servable = sessions[0]
        if self.cores is not None and len(sessions) > 1:
            servable = TwoWidths(sessions[1], sessions[0], self.cores)
        if self.scheduler is None:
            return servable
        return BatchingServable(servable, self.scheduler, self.metrics)

    def _sessions(self, path: Path) -> list[Session]:
        """The model's session; and one with one thread, if it may be loaded twice."""
        size = sum(file.stat().st_size for file in path.glob("saved_model.pb*"))
        session = Session(path, self.options)
        if self.cores is None or session.keeps_state or size > MOST_BYTES_TWICE:
            return [session]
        try:
            return [session, Session(path, replace(self.options, intra_op_threads=1))]
        except BaseException:
            session.close()
            raise

    def _warm_up(self, name: str, version: int, sessions: Sequence[Session], path: Path) -> None:
        """Replay the version's warm-up file, if it has one.

        As in the original, the time counts only if the replay got to the end of the file, or to where it is
        damaged.
        """
        file = path / WARMUP_FILE
        if not file.is_file():
            logger.info("No warmup data file found at %s", file)
            return
        started = time.perf_counter()

        def observe(status: Code) -> None:
            self.metrics.warmup_latency.observe(_microseconds_since(started), str(path), status.name)

        try:
            for session in sessions:
                with self._as_called(session) as servable:
                    model = Model(name, version, servable)
                    warm_up(model, file, self.warmup_iterations, check_method=self.check_method_names)
        except DamagedFile as error:
            observe(error.code)
            raise
        observe(Code.OK)

    @contextmanager
    def _as_called(self, session: Session) -> Iterator[Servable]:
        """`session` as requests reach it: in batches, so that one may be refused as too large."""
        if self.scheduler is None:
            yield session
            return
        batching = BatchingServable(session, self.scheduler, self.metrics)
        try:
            yield batching
        finally:
            batching.detach()


def _microseconds_since(started: float) -> int:
    return round((time.perf_counter() - started) * 1e6)


def may_load_twice(flags: Flags, count: int) -> bool:
    """Whether models are loaded for one core and for all `count`: if the flags do not set the threads."""
    return _parallelism(flags) == (0, 0) and 1 < count <= MOST_CORES


def _parallelism(flags: Flags) -> tuple[int, int]:
    """TensorFlow's intra-op and inter-op threads; 0 leaves the number to it."""
    both = flags.tensorflow_session_parallelism
    intra, inter = flags.tensorflow_intra_op_parallelism, flags.tensorflow_inter_op_parallelism
    if both > 0 and intra > 0 and inter > 0:
        raise invalid_argument(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) separately. You cannot configure all."
        )
    return (intra, inter) if intra > 0 or inter > 0 else (both, both)
