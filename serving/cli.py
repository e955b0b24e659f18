"""Where `sluice` begins: what must be so before anything is imported that takes time; then the command."""

from __future__ import annotations

import io
import os
import signal
import sys

from serving import grpc_environment

_INTERRUPTED = 128 + signal.SIGINT  # as shells say it


def main() -> None:
    """The entry point of the console command."""
    may_be_interrupted = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if may_be_interrupted:
        # While it is imported, for half a second in which people see that they mistyped, Ctrl-C ends the
        # process at once. As an exception it would be shown with its stack, or be lost in an import.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_standard_streams()
    grpc_environment.prepare()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names are any bytes, and labels any text: what the terminal has no letters for is escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.argv[1:2] == ["model-server"]:
        sys.exit(_model_server(sys.argv[2:]))
    from serving.commands.app import build

    app = build()
    try:
        if may_be_interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        app()
    except KeyboardInterrupt:  # before a command runs, which tells of it itself
        sys.exit(_INTERRUPTED)
    except OSError as error:  # what is printed before, such as help, cannot be: the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left of it
        sys.exit(f"error: {error.strerror or error}")


def _open_standard_streams() -> None:
    """Have the null device for those that the parent closed, as some supervisors do.

    Their numbers would go to the next files and connections, where whatever writes to stderr would write;
    and the event loop's library ends the process rather than close one of them.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode))


def _model_server(arguments: list[str]) -> int:
    """Its flags are tensorflow_model_server's, in that program's forms; it reads them itself."""
    from serving import modelserver

    if arguments in (["-h"], ["--help"]):
        print(modelserver.usage())
        return 0
    return modelserver.main(arguments)


if __name__ == "__main__":
    main()
