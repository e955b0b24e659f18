"""How a version comes in: the session, then whatever must be done before it may serve."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from serving.modelserver.flags import Flags
from serving.modelserver.servable import LoadOptions, Session
from serving.modelserver.status import invalid_argument

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loading:
    """Loads servables, all in the same way."""

    options: LoadOptions

    @classmethod
    def from_flags(cls, flags: Flags) -> Loading:
        """As the command line says; raises StatusError for flags that contradict each other."""
        both = flags.tensorflow_session_parallelism
        intra, inter = flags.tensorflow_intra_op_parallelism, flags.tensorflow_inter_op_parallelism
        if both > 0 and intra > 0 and inter > 0:
            raise invalid_argument(
                "Either configure server_options.tensorflow_session_parallelism or "
                "(server_options.tensorflow_intra_op_parallelism, "
                "server_options.tensorflow_inter_op_parallelism) separately. You cannot configure all."
            )
        if intra <= 0 and inter <= 0:
            intra = inter = both
        return cls(LoadOptions(tuple(flags.saved_model_tags.split(",")), intra, inter))

    def load(self, name: str, version: int, path: Path) -> Session:
        """Load version `version` of model `name` from `path`; raises StatusError."""
        logger.info("Loading servable: {name: %s version: %d} from %s", name, version, path)
        return Session(path, self.options)
