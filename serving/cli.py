"""The entry point of `sluice`: what must be set up before the slow imports, then the command itself."""

from __future__ import annotations

import io
import os
import signal
import sys

from serving import grpc_environment

_INTERRUPTED = 128 + signal.SIGINT  # the exit status that shells report


def main() -> None:
    """The entry point of the console command."""
    may_be_interrupted = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if may_be_interrupted:
        # The imports take half a second, in which people notice typing errors: Ctrl-C then ends the process
        # at once. As an exception it would print a traceback, or be swallowed by an import.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_standard_streams()
    grpc_environment.prepare()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names may be any bytes, and labels any text: what the terminal cannot show is escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.argv[1:2] == ["model-server"]:
        sys.exit(_model_server(sys.argv[2:]))
    from serving.commands.app import build

    app = build()
    try:
        if may_be_interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        app()
    except KeyboardInterrupt:  # before a command runs; commands report it themselves
        sys.exit(_INTERRUPTED)
    except OSError as error:  # help, for example, cannot be printed: the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        sys.exit(f"error: {error.strerror or error}")


def _open_standard_streams() -> None:
    """Open the null device in place of standard streams that the parent closed, as some supervisors do.

    Otherwise the next files and connections would get their descriptors, and output to stderr would go there;
    and the event loop's library ends the process rather than close one of these descriptors.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode))


def _model_server(arguments: list[str]) -> int:
    """Run the model server, which parses its flags itself: their syntax is tensorflow_model_server's."""
    from serving import modelserver
    from serving.modelserver import huge_pages

    if arguments in (["-h"], ["--help"]):
        print(modelserver.usage())
        return 0
    huge_pages.ask()
    return modelserver.main(arguments)


if __name__ == "__main__":
    main()
