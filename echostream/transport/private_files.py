"""Files that must stay this user's own: keys, and the list of servers that are known.

Every error is an :class:`~echostream.errors.IdentityError` that names the path and says what to do.
Permissions are checked on POSIX only; elsewhere the user's profile directory has to do.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from echostream.errors import IdentityError

__all__ = [
    "data_directory",
    "locked",
    "read_lines",
    "read_private",
    "write_lines",
    "write_private",
]

_LOCK_TIMEOUT_S = 5.0
_LOCK_POLL_S = 0.01

logger = logging.getLogger(__name__)


def data_directory() -> Path:
    """Where EchoStream keeps what outlives a run: ``$ECHOSTREAM_HOME``, else ``echostream`` in the
    platform's directory for user data (``$XDG_DATA_HOME``, by default ``~/.local/share``)."""
    if home := os.environ.get("ECHOSTREAM_HOME"):
        return Path(home).absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else _user_home() / "AppData" / "Local") / "echostream"
    if sys.platform == "darwin":
        return _user_home() / "Library" / "Application Support" / "echostream"
    xdg = os.environ.get("XDG_DATA_HOME", "")
    # "If an implementation encounters a relative path ... it should ... ignore it"
    # (XDG Base Directory Specification 0.8).
    return (Path(xdg) if os.path.isabs(xdg) else _user_home() / ".local" / "share") / "echostream"


def _user_home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise IdentityError(
            "this user has no home directory; name a directory for keys in ECHOSTREAM_HOME"
        ) from error


def read_private(path: Path, *, secret: bool) -> bytes | None:
    """The file's bytes, ``None`` where there is no such file.

    What others could have written is refused. A ``secret`` that others could read is closed to
    them (mode 0600), with a warning: they may have read it already.
    """
    try:
        with path.open("rb") as file:
            if os.name == "posix":
                _check_directory(path.parent)
                _check_mode(path, os.fstat(file.fileno()), secret)
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from error


def write_private(path: Path, data: bytes) -> None:
    """Put ``data`` there with mode 0600, at once or not at all, also across a crash."""
    target = path.resolve()  # a symbolic link stays one
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:  # mkstemp has made it with mode 0600
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise _unusable(path, error) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that is no secret; none where there is no such file."""
    data = read_private(path, secret=False)
    try:
        return [] if data is None else data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise IdentityError(f"{path} is not a text file; remove it, or name another one") from error


def write_lines(path: Path, lines: list[str]) -> None:
    """Put ``lines`` there, as :func:`write_private` does."""
    write_private(path, "".join(line + "\n" for line in lines).encode())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes (and other threads) that lock the same ``path`` out.

    Makes the directory, with mode 0700, where it is missing. Held for the time of one small
    write; when it cannot be had in five seconds, somebody hangs, and the error names the file.
    """
    lock_path = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.name == "posix":
            _check_directory(path.parent)
        handle = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        give_up = time.monotonic() + _LOCK_TIMEOUT_S
        while not _try_lock(handle):
            if time.monotonic() > give_up:
                raise IdentityError(f"another process holds {lock_path}; end it and try again")
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(handle)  # releases the lock


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _unusable(path: Path, error: OSError) -> IdentityError:
    return IdentityError(
        f"cannot use {path}: {error.strerror}; make {path.parent} a directory that this user may "
        "read and write, or name another one in ECHOSTREAM_HOME"
    )


def _check_mode(path: Path, status: os.stat_result, secret: bool) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise IdentityError(f"{path} is not a regular file; remove it")
    if mode & 0o022:
        raise IdentityError(
            f"others may write to {path} (mode {mode:04o}), so its content cannot be trusted; "
            f"remove it, or, if you know that it is right: chmod 600 {path}"
        )
    if secret and mode & 0o077:
        os.chmod(path, 0o600)
        logger.warning(
            "others could read the private key in %s (mode %04o); it is closed to them now. "
            "If somebody may have copied it, remove the file: a new key is then made",
            path,
            mode,
        )


def _check_directory(path: Path) -> None:
    """Group-writable is let pass: where each user has a group of their own, it is the default."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o002:
        raise IdentityError(
            f"everybody may write to the directory {path} (mode {mode:04o}) and could exchange the "
            f"keys in it: chmod o-w {path}, or name another directory in ECHOSTREAM_HOME"
        )
