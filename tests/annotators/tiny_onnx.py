"""The smallest .onnx files, written byte by byte: the tests need no package for it.

A network that gives back its input, (batch, channels, height, width) floats.
"""

from pathlib import Path

FLOAT = 1
VERSION, OPERATIONS = 8, 13


def write(path: Path, batch: int | str = "batch", copies: int = 1) -> Path:
    """batch: how many pictures the network takes, or a name where that is open.

    copies: how many outputs it has, all like the input.
    """
    names = [f"out{number}" for number in range(copies)]
    nodes = [_field(1, _field(1, "in") + _field(2, name) + _field(4, "Identity")) for name in names]
    outputs = [_field(12, _value(name, batch)) for name in names]
    graph = b"".join([*nodes, _field(2, "tiny"), _field(11, _value("in", batch)), *outputs])
    operations = _field(8, _field(1, "") + _field(2, OPERATIONS))
    path.write_bytes(_field(1, VERSION) + _field(7, graph) + operations)
    return path


def _value(name: str, batch: int | str) -> bytes:
    """A ValueInfoProto: floats of (batch, channels, height, width)."""
    sides = [
        _field(1, _field(1 if isinstance(side, int) else 2, side))
        for side in (batch, "channels", "height", "width")
    ]
    tensor = _field(1, FLOAT) + _field(2, b"".join(sides))
    return _field(1, name) + _field(2, _field(1, tensor))


def _field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
