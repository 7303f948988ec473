"""One server process for one version of one model: `python -m serving.server --help`."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import gc
import json
import logging
import os
import re
import signal
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop

from serving.app import About, Application
from serving.records import Header, Recorder
from serving.scoring import load_package
from state.errors import TerminalError

log = logging.getLogger(f"steadyhand.{__name__}")

REFUSED = 2
ALREADY_RUNNING = 3
KEEP_ALIVE_SECONDS = 75  # longer than the proxy keeps an idle connection, or it would send into one that closes


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serving.server", description="Serve one version of one model.")
    parser.add_argument("--model", required=True, type=_plain_name)
    parser.add_argument("--version", required=True, type=_plain_name)
    parser.add_argument("--package", type=Path, help="model package folder; without it every prediction gets 503")
    parser.add_argument("--stage", default="none", help="shown by /health and /metrics")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--records", type=Path, help="folder of prediction records; without it none are kept")
    parser.add_argument("--token-file", type=Path, help="bearer token of /flush and /shutdown")
    parser.add_argument("--state-file", type=Path, help="written once the port is bound; one process may hold it")
    parser.add_argument("--key", default="", help="ledger key of the action that started this server")
    parser.add_argument("--digest", default="", help="digest of the package, stored in the state file")
    parser.add_argument("--max-waiting", type=int, default=128)
    parser.add_argument("--drain-seconds", type=int, default=10)
    return parser.parse_args(argv)


def _plain_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain name of letters, digits, '.', '_' and '-'")
    return text


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        TerminalError: the port is taken or not ours to take.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as exc:
        listener.close()
        raise TerminalError(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    return listener


def hold(state_file: Path) -> int:
    """Lock `state_file` for the life of this process; returns the lock's descriptor.

    Raises:
        BlockingIOError: another server of this version holds it.
    """
    state_file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(state_file.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def write_state(options: argparse.Namespace, port: int) -> None:
    """Tell whoever started us, or comes after it, where we are."""
    stat = Path("/proc/self/stat").read_text(encoding="utf-8")
    state = {
        "key": options.key,
        "pid": os.getpid(),
        "start_ticks": int(stat.rpartition(")")[2].split()[19]),
        "host": options.host,
        "port": port,
        "digest": options.digest,
        "model": options.model,
        "version": options.version,
    }
    temporary = options.state_file.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, sort_keys=True) + "\n", encoding="utf-8")
    temporary.rename(options.state_file)


class Service:
    """uvicorn, the application and the records, with one end for all three."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        about = About(model=options.model, version=options.version, stage=options.stage, key=options.key)
        self._app = Application(about, token_file=options.token_file, max_waiting=options.max_waiting)
        self._app.on_shutdown = self.stop
        self._recorder: Recorder | None = None
        config = uvicorn.Config(
            self._app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=options.drain_seconds,
        )
        self._server = uvicorn.Server(config)
        self._failure: TerminalError | None = None

    def stop(self) -> None:
        """Begin to drain; may be called more than once, and before `run`."""
        self._server.should_exit = True

    async def run(self, listener: socket.socket) -> None:
        """Serve until told to stop; every accepted request is answered and every record kept.

        Raises:
            TerminalError: the package cannot be loaded.
        """
        loading = asyncio.create_task(self._load())
        await self._server.serve(sockets=[listener])
        await loading
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)
        if self._failure is not None:
            raise self._failure

    async def _load(self) -> None:
        options = self._options
        if options.package is None:
            return
        loaded = False
        try:
            scorer = await asyncio.to_thread(load_package, options.package)
            if options.records is not None:
                header = Header.of(scorer.contract, options.version)
                self._recorder = await asyncio.to_thread(Recorder, options.records / options.model, header)
            loaded = True
        except TerminalError as exc:
            self._failure = exc
        except OSError as exc:
            self._failure = TerminalError(f"{options.records}: {exc.strerror}")
        finally:
            if not loaded:
                self.stop()
        if loaded:
            gc.collect()
            gc.freeze()  # the model never dies, so no collection should walk it
            self._app.load(scorer, self._recorder)
            log.info("serving %s version %s", options.model, options.version)


def main(argv: list[str] | None = None) -> int:
    """Serve; the exit code is 0 after a stop, 2 for a refused package or port, 3 where the version already runs."""
    options = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    service = Service(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again once it has drained; the records still have to be written then.
        signal.signal(number, lambda *_: service.stop())
    try:
        lock = hold(options.state_file) if options.state_file else None
    except BlockingIOError:
        print(f"version {options.version} of {options.model} already runs", file=sys.stderr)
        return ALREADY_RUNNING
    try:
        listener = bind(options.host, options.port)
        if options.state_file is not None:
            write_state(options, listener.getsockname()[1])
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(service.run(listener))
    except TerminalError as exc:
        print(exc, file=sys.stderr)
        return REFUSED
    finally:
        if lock is not None:
            os.close(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
