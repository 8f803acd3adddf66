"""Keep traced programs on disk, so that a later process need not trace them again.

To trace a large function takes seconds, to load its program milliseconds. `StoredJit` compiles a
function as `eqx.filter_jit` does, and keeps its programs in the store, if `open_store` has opened
one. A program that cannot be stored is traced in every process.

An entry of the store is a file: the SHA-256 of the rest, the structure of the result, the program
as `jax.export` writes it. Its name is a hash of all that a trace depends on: the code of this
package, the versions of the libraries, the settings of jax, and the structure, the shapes, the
dtypes and the static parts of the arguments. A damaged entry is traced again.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.export
import numpy as np

from ddln._internal.files import write_whole
from ddln._internal.validation import is_concrete

R = TypeVar("R")

MAX_BYTES = 2**28
"""The most that a store holds."""
MAX_ENTRY_BYTES = 2**24
"""Programs larger than this contain data and are not stored."""
_LIBRARIES = ("jax", "jaxlib", "equinox", "diffrax", "lineax", "optimistix", "optax", "numpy")
_DIGEST_BYTES = hashlib.sha256().digest_size


class ProgramStore:
    """A folder of entries, which several processes may use at once.

    Args:
        folder: created on the first write. Programs in it are trusted, as are those of jax's
            persistent cache.
        max_bytes: of all entries together; the least recently used ones are removed.

    >>> import tempfile
    >>> store = ProgramStore(Path(tempfile.mkdtemp()))
    >>> store.write("ab12", b"program")
    >>> store.read("ab12"), store.read("cd34")
    (b'program', None)
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES):
        self.folder, self.max_bytes = folder, max_bytes
        self._accepts = True

    def read(self, name: str) -> bytes | None:
        """The content of an entry; None if it is missing or damaged."""
        path = self.folder / name
        try:
            entry = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # the folder can be read-only
            path.touch()
        digest, content = entry[:_DIGEST_BYTES], entry[_DIGEST_BYTES:]
        return content if hashlib.sha256(content).digest() == digest else None

    def write(self, name: str, content: bytes) -> None:
        """Write an entry. After a failure, warn and write no more."""
        if not self._accepts or len(content) > MAX_ENTRY_BYTES:
            return
        entry = hashlib.sha256(content).digest() + content
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self.folder / name, lambda path: path.write_bytes(entry))
            self._make_room()
        except OSError as error:
            self._accepts = False
            warnings.warn(
                f"{self.folder}: {error.strerror}; later runs will start more slowly",
                ResourceWarning,
                stacklevel=2,
            )

    def _make_room(self) -> None:
        """Remove the entries that were used least recently, beyond `max_bytes`."""
        entries = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        total = 0
        for _, size, path in sorted(entries, reverse=True):
            total += size
            if total > self.max_bytes:
                path.unlink(missing_ok=True)


class _Opened:
    """The store of this process."""

    store: ProgramStore | None = None
    log: Callable[[str], None] | None = None


def open_store(folder: Path | None, log: Callable[[str], None] | None = None) -> None:
    """Keep the programs of this process in a folder.

    Args:
        folder: with `None`, none are kept.
        log: called with a message when a program that has a title is not in the store.
    """
    _Opened.store = None if folder is None else ProgramStore(folder)
    _Opened.log = log


def is_open() -> bool:
    """Whether the programs of this process are kept."""
    return _Opened.store is not None


_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


class _Form:
    """What is not an array in the arguments of a call, and the types of the arrays."""

    def __init__(self, arrays: Any, static: Any):
        leaves, self._structure = jax.tree.flatten(arrays)
        self._static = static
        static_leaves, static_structure = jax.tree.flatten(static)
        types = tuple(jax.typeof(array) for array in leaves)
        self.signature = self._structure, static_structure, tuple(static_leaves), types
        """What determines the program; hashable."""

    @property
    def is_portable(self) -> bool:
        """Whether the signature means the same in other processes."""
        return " at 0x" not in repr(self.signature)

    def with_arrays(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments with these arrays."""
        return eqx.combine(jax.tree.unflatten(self._structure, arrays), self._static)


def _split(arguments: tuple[Any, ...]) -> tuple[_Form, list[Any]]:
    """The form of the arguments, and the arrays among them."""
    arrays, static = eqx.partition(arguments, lambda leaf: isinstance(leaf, _ARRAYS))
    return _Form(arrays, static), jax.tree.leaves(arrays)


def _are_local(arrays: Sequence[Any]) -> bool:
    """Whether no array is distributed over several devices."""
    shardings = [getattr(array, "sharding", None) for array in arrays]
    return all(sharding is None or len(sharding.device_set) == 1 for sharding in shardings)


class _Program(NamedTuple):
    """A program for arguments of one form."""

    run: Any
    """From arrays to a list of arrays: a `jax.stages.Wrapped`, or `Compiled` once prepared."""
    result: Any
    """The result, with a `jax.ShapeDtypeStruct` in place of each array."""


class StoredJit(Generic[R]):
    """A compiled function whose programs are stored; traced arguments inline it.

    Args:
        function: of positional arguments, to a tree of arrays. What is not an array is static. It
            depends on its arguments and on `key` only.
        key: tells functions of the same name apart.
        compiler_options: as for `jax.jit`.
        title: what messages call it.

    >>> double = StoredJit(lambda x: 2 * x)
    >>> double.prepare(jax.ShapeDtypeStruct((3,), "float32")).shape, float(double(jnp.ones(())))
    ((3,), 2.0)
    """

    def __init__(
        self,
        function: Callable[..., R],
        key: str = "",
        compiler_options: dict[str, bool | int] | None = None,
        title: str = "",
    ):
        self._function, self._key, self._options = function, key, compiler_options
        self._title = title
        self._nested = eqx.filter_jit(function)
        self._programs: dict[Any, _Program] = {}

    def __call__(self, *args: Any) -> R:
        form, arrays = _split(args)
        if not is_concrete(*arrays):
            return self._nested(*args)
        program = self._program(form, arrays)
        return jax.tree.unflatten(jax.tree.structure(program.result), program.run(*arrays))

    def prepare(self, *args: Any) -> R:
        """Compile the function without running it.

        Args:
            args: a `jax.ShapeDtypeStruct` can replace any array.

        Returns:
            The result, with a `jax.ShapeDtypeStruct` in place of each array.
        """
        form, arrays = _split(args)
        program = self._program(form, arrays)
        if isinstance(program.run, jax.stages.Wrapped):
            program = program._replace(run=program.run.lower(*arrays).compile())
            self._programs[form.signature] = program
        return program.result

    def _program(self, form: _Form, arrays: list[Any]) -> _Program:
        """The program of this process, or from the store; else it is traced, and stored."""
        if (program := self._programs.get(form.signature)) is not None:
            return program
        store, content = _Opened.store, None
        if store is not None and form.is_portable and _are_local(arrays):
            name = self._entry_name(form)
            content = store.read(name)
            if content is None and self._title and _Opened.log is not None:
                _Opened.log(f"compiling {self._title}")
            if content is None and (content := self._export(form, arrays)) is not None:
                store.write(name, content)
        if content is None:
            program = self._trace(form, arrays)
        else:
            result, exported = pickle.loads(content)
            call = jax.export.deserialize(bytearray(exported)).call
            program = _Program(jax.jit(call, compiler_options=self._options), result)
        return self._programs.setdefault(form.signature, program)

    def _entry_name(self, form: _Form) -> str:
        name = f"{self._function.__module__}.{self._function.__qualname__}"
        text = "\n".join([_code(), _settings(), name, self._key, repr(form.signature)])
        return hashlib.sha256(text.encode()).hexdigest()

    def _trace(self, form: _Form, arrays: list[Any]) -> _Program:
        on_arrays = _OnArrays(self._function, form)
        run = jax.jit(on_arrays, compiler_options=self._options)
        return _Program(run, on_arrays.result_like(run.eval_shape(*arrays)))

    def _export(self, form: _Form, arrays: list[Any]) -> bytes | None:
        """The content of an entry; None if the program cannot be exported."""
        on_arrays = _OnArrays(self._function, form)
        try:
            exported = jax.export.export(jax.jit(on_arrays))(*arrays)
            return pickle.dumps((on_arrays.result_like(exported.out_avals), exported.serialize()))
        except Exception:  # an error of the function itself comes again when it is traced
            return None


class _OnArrays:
    """A function as one from arrays to a list of arrays."""

    def __init__(self, function: Callable[..., Any], form: _Form):
        self._function, self._form, self._structure = function, form, None
        self.__name__ = getattr(function, "__name__", type(function).__name__)  # in profiles

    def __call__(self, *arrays: Any) -> list[Any]:
        leaves, self._structure = jax.tree.flatten(self._function(*self._form.with_arrays(arrays)))
        return leaves

    def result_like(self, types: Sequence[Any]) -> Any:
        """The result of the function, once traced, with the shapes and dtypes of its arrays."""
        arrays = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in types]
        return jax.tree.unflatten(self._structure, arrays)


@functools.cache
def _code() -> str:
    """A hash of the code of this package, and the versions of the libraries."""
    package = Path(__file__).parent.parent
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(path.read_bytes())
    versions = [platform.python_version(), *map(version, _LIBRARIES)]
    return " ".join([code.hexdigest(), *versions])


def _settings() -> str:
    """The settings that a trace can depend on."""
    settings = {**jax.config.values, "EQX_ON_ERROR": os.environ.get("EQX_ON_ERROR")}
    return f"{jax.default_backend()} {sorted(settings.items())}"
