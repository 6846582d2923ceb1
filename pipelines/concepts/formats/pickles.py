"""Reads the embeddings that AUTOMATIC1111 and others kept as pickles, as data: nothing a pickle says is ever called.

A pickle is a program for a small machine. This machine knows only the instructions by which torch writes dictionaries
of tensors; names it may mention are a short list, and stand for nothing but marks. Whatever else is met ends the
reading. The archive around it is read with `zipfile`, members stored and not packed, as torch writes them; files of
torch before 1.6 are several pickles, and the numbers of all tensors behind them.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import ConceptError

SIZE_LIMIT = 64 << 20  # bytes; an embedding has some hundred KB
STEP_LIMIT = 1_000_000  # instructions
MEMBER_LIMIT = 4000
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of torch before 1.6

_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}
_KNOWN = {
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("torch._utils", "_rebuild_parameter"): "parameter",
    ("collections", "OrderedDict"): "dict",
    ("torch.nn.modules.container", "ParameterDict"): "parameters",
    ("__builtin__", "set"): "nothing",  # of the inside of a ParameterDict
    **{("torch", name): name for name in _STORAGES},
}


class Refused(Exception):  # noqa: N818 - becomes a sentence in `read_pickle`
    """An instruction or a name that no embedding needs, or data that does not fit together."""


@dataclass(frozen=True)
class _Mark:
    """A placeholder for a name: no function, no class."""

    name: str


_MARK = object()


@dataclass
class _Holder:
    """An object with attributes (a `ParameterDict`), as its attributes."""

    state: dict[str, Any] = field(default_factory=dict)


def read_pickle(path: Path, limit: int = SIZE_LIMIT) -> Any:
    """Return the content of a `.pt`, `.pth` or `.bin` file of torch: dictionaries, lists, texts, numbers and tensors.

    Args:
        path: of the file.
        limit: most bytes of it.

    Raises:
        ConceptError: if it is too large, damaged, not written by torch, or holds anything else.
    """
    hint = "Ask for the .safetensors file; pickles can run code in programs that trust them."
    try:
        if path.stat().st_size > limit:
            raise Refused(f"it has over {limit >> 20} MiB")
        return _archived(path, limit) if zipfile.is_zipfile(path) else _in_a_row(path.read_bytes())
    except Refused as error:
        raise ConceptError(f"{path.name} is a pickle that is not read: {error}.", hint) from None
    except Exception as error:  # a damaged archive or program raises anything at all
        what = type(error).__name__
        raise ConceptError(f"{path.name} is a pickle that cannot be read ({what}).", hint) from None


def _archived(path: Path, limit: int) -> Any:
    """Return the content of an archive of torch."""
    with zipfile.ZipFile(path) as archive:
        members = _members(archive, limit)
        (name,) = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
        folder = name.removesuffix("data.pkl")
        order = members.get(f"{folder}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise Refused("its numbers are not little-endian")

        def storage(key: str, count: int, dtype: torch.dtype) -> Tensor:
            content = archive.read(members[f"{folder}data/{key}"])
            if len(content) != count * dtype.itemsize:
                raise Refused("a tensor has the wrong length")
            return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)

        return _Machine(storage).run(archive.read(members[name]))


def _in_a_row(content: bytes) -> Any:
    """Return the content of a file of torch before 1.6: magic number, version, system, value, keys, then numbers."""
    stream, storages, room = io.BytesIO(content), dict[str, Tensor](), len(content)

    def storage(key: str, count: int, dtype: torch.dtype) -> Tensor:
        nonlocal room
        room -= count * dtype.itemsize
        if count < 0 or room < 0:
            raise Refused("its tensors are larger than it")
        storages[key] = torch.empty(count, dtype=dtype)  # filled below
        return storages[key]

    magic, _, system = (_Machine(storage).run(stream) for _ in range(3))
    if magic != MAGIC or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("torch did not write it, or not on a machine like this")
    value, keys = (_Machine(storage).run(stream) for _ in range(2))
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise Refused("it is damaged")
    for key in keys:
        held = storages[key]
        size = held.numel() * held.element_size()
        if int.from_bytes(stream.read(8), "little") != held.numel() or len(numbers := stream.read(size)) != size:
            raise Refused("a tensor has the wrong length")
        if size:
            held.copy_(torch.frombuffer(bytearray(numbers), dtype=held.dtype))
    return value


def _members(archive: zipfile.ZipFile, limit: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name, if they are as torch writes them."""
    members: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in archive.infolist():
        total += info.file_size
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise Refused("its members are packed or locked, which torch never does")
        if info.filename in members or ".." in info.filename or info.filename.startswith(("/", "\\")):
            raise Refused(f"it has a member named {info.filename!r:.60}")
        members[info.filename] = info
        if len(members) > MEMBER_LIMIT or total > limit:
            raise Refused("it has too many members")
    return members


class _Machine:
    """Runs the instructions of a pickle on a stack of plain data.

    Args:
        storage: gives a tensor's storage by its key, the count of its numbers and their kind.
    """

    def __init__(self, storage: Callable[[str, int, torch.dtype], Tensor]) -> None:
        self.storage = storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Tensor] = {}

    def run(self, program: bytes | io.BytesIO) -> Any:
        for count, (code, argument, _) in enumerate(pickletools.genops(program)):
            if count > STEP_LIMIT:
                raise Refused("it has too many instructions")
            if code.name == "STOP":
                return self.stack.pop()
            step = _STEPS.get(code.name)
            if step is None:
                raise Refused(f"it has the instruction {code.name}")
            step(self, argument)
        raise Refused("it has no end")

    def to_mark(self) -> list[Any]:
        """Take what lies on the stack down to the last mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise Refused("it is damaged")
        taken = self.stack[at + 1 :]
        del self.stack[at:]
        return taken

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def name(self, module: str, name: str) -> None:
        known = _KNOWN.get((module, name))
        if known is None:
            raise Refused(f"it asks for {module}.{name}"[:120])
        self.push(_Mark(known))

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise Refused("it is damaged")
        self.name(module, name)

    def items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise Refused("it is damaged")
        if not all(isinstance(key, str | int) for key in pairs[::2]):  # others can take for ever to hash
            raise Refused("it has a dictionary of something else than names")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise Refused("it is damaged")
        target.extend(values)

    def persistent(self) -> None:
        """Push a storage: ("storage", kind, key, device, count), and in old files None, for a part of another."""
        kind, mark, key, _, count, *part = self.stack.pop()
        known = isinstance(mark, _Mark) and mark.name in _STORAGES and isinstance(key, str) and type(count) is int
        if kind != "storage" or not known or part not in ([], [None]):
            raise Refused("it has a reference to something that is no tensor")
        dtype = _STORAGES[mark.name]
        if key not in self.storages:  # read once, however often it is named
            self.storages[key] = self.storage(key, count, dtype)
        if self.storages[key].dtype != dtype or len(self.storages[key]) != count:
            raise Refused("a tensor's data is of two kinds")
        self.push(self.storages[key])

    def call(self) -> None:
        """Return the result of a name with its arguments, by our own function, not the one of that name."""
        arguments, mark = self.stack.pop(), self.stack.pop()
        if not isinstance(mark, _Mark) or not isinstance(arguments, tuple):
            raise Refused("it calls something")
        if mark.name == "tensor":
            self.push(_tensor(*arguments[:4]))
        elif mark.name == "parameter" and isinstance(arguments[0], Tensor):
            self.push(arguments[0])
        elif mark.name == "dict" and not arguments:
            self.push({})
        elif mark.name == "nothing":
            self.push(None)
        elif mark.name == "parameters" and not arguments:
            self.push(_Holder())
        else:
            raise Refused("it calls something")

    def build(self) -> None:
        """Attributes of an object; those of dictionaries and tensors say nothing."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Holder) and isinstance(state, dict):
            target.state.update(state)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """A tensor that lies in its storage as a whole, row after row: nothing repeated, nothing out of bounds."""
    if not isinstance(storage, Tensor) or not isinstance(size, tuple) or len(size) > 4 or type(offset) is not int:
        raise Refused("it is damaged")
    count = 1
    for extent, step in zip(reversed(size), reversed(stride), strict=True):
        if type(extent) is not int or extent < 0 or (step != count and extent > 1):
            raise Refused("a tensor does not lie row after row")
        count *= extent
    if not 0 <= offset <= offset + count <= len(storage):
        raise Refused("a tensor reaches out of its data")
    return storage[offset : offset + count].reshape(size)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of an embedding or LoRA kept as a pickle, named as in a safetensors file, and what is said of them.

    AUTOMATIC1111's and the first implementation's dictionaries (`string_to_param`) give one tensor, named by the word.

    Raises:
        ConceptError: as `read_pickle`, or if it holds no such dictionary.
    """
    value = read_pickle(path)
    if isinstance(value, Tensor):
        value = {"emb_params": value}
    said: dict[str, str] = {}
    if isinstance(value, dict) and "string_to_param" in value:
        held = value["string_to_param"]
        held = held.state.get("_parameters") if isinstance(held, _Holder) else held
        if not isinstance(held, dict) or len(held) != 1:
            raise ConceptError(f"{path.name} holds no word, or several.", "Give a file of one word.")
        ((own, rows),) = held.items()
        named = value.get("name")
        word = named if isinstance(named, str) and named else own
        said = {"modelspec.trigger_phrase": word} if isinstance(word, str) and word != "*" else {}
        value = {"emb_params": rows}
    if not isinstance(value, dict) or not value or not all(isinstance(name, str) for name in value):
        raise ConceptError(f"{path.name} holds no dictionary of tensors.", "Give an embedding or a LoRA.")
    if not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise ConceptError(f"{path.name} holds other things than tensors.", "Give an embedding or a LoRA.")
    # Many names may share one tensor: what is made of a file is not larger than the file.
    size, needed = path.stat().st_size, sum(tensor.numel() * tensor.element_size() for tensor in value.values())
    if needed > size:
        raise ConceptError(
            f"{path.name} has {size >> 10:,} KiB, and its tensors together {needed >> 10:,} KiB.", "Check the file."
        )
    return {name: tensor.clone() for name, tensor in value.items()}, said


def _taking(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        taken = machine.stack[len(machine.stack) - count :]
        if len(taken) != count:
            raise Refused("it is damaged")
        del machine.stack[len(machine.stack) - count :]
        machine.push(tuple(taken))

    return step


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.name(module, name)


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    **dict.fromkeys(
        ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        _Machine.push,
    ),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": lambda machine, _: machine.push(_MARK),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.to_mark())),
    "TUPLE1": _taking(1),
    "TUPLE2": _taking(2),
    "TUPLE3": _taking(3),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "GLOBAL": _global,
    "STACK_GLOBAL": lambda machine, _: machine.stack_name(),
    "SETITEM": lambda machine, _: machine.items([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.items(machine.to_mark()),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.to_mark()),
    "BINPERSID": lambda machine, _: machine.persistent(),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}
