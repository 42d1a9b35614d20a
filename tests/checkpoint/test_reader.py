"""Safetensors files: what is read equals what other readers read; nothing malformed gets past the header check."""

import json
import os
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from openglm.checkpoint.reader import DTYPES, MAX_HEADER_BYTES, Reader, read_header
from openglm.checkpoint.writer import OutgoingTensor, write_safetensors
from openglm.errors import CheckpointError

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def write_file(path, header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_safetensors_library_writes(tmp_path):
    tensors = {
        "float": torch.randn(3, 5),
        "low": torch.randn(4, 2).bfloat16(),
        "fp8": torch.randn(2, 2).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(7.0),
        "empty": torch.empty(0, 3),
        "ids": torch.arange(5),
        "flags": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.keys() == tensors.keys()
    with Reader() as reader:
        for name, tensor in tensors.items():
            got = reader.read(header[name])
            assert got.dtype == tensor.dtype and got.shape == tensor.shape
            assert got.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    tensors = {"a": torch.randn(3, 5), "bias": torch.randn(4), "empty": torch.empty(0, 3), "scalar": torch.tensor(2.0)}
    outgoing = [OutgoingTensor(name, tensor, torch.float32 if name == "bias" else torch.bfloat16) for name, tensor in tensors.items()]
    write_safetensors(tmp_path / "x.safetensors", outgoing, {"note": "☃"})
    read = load_file(tmp_path / "x.safetensors")
    assert {name: value.dtype for name, value in read.items()} == {item.name: item.dtype for item in outgoing}
    assert all(value.equal(tensors[name].to(value.dtype)) for name, value in read.items())
    header = read_header(tmp_path / "x.safetensors")
    assert all(stored.offset % DTYPES[stored.dtype].itemsize == 0 for stored in header.values())


def test_rows_are_read_by_slice_and_cast_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("openglm.checkpoint.reader.CHUNK_BYTES", 64)
    monkeypatch.setattr("openglm.checkpoint.writer.CHUNK_BYTES", 64)
    tensor = torch.randn(40, 7)
    write_safetensors(
        tmp_path / "x.safetensors", [OutgoingTensor("pad", torch.zeros(3), torch.float32), OutgoingTensor("x", tensor, torch.float32)]
    )
    stored = read_header(tmp_path / "x.safetensors")["x"]
    with Reader() as reader:
        assert reader.read(stored).equal(tensor)
        assert reader.read(stored, slice(5, 17)).equal(tensor[5:17])
        assert reader.read(stored, slice(9, 9)).shape == (0, 7)
        for dtype in (torch.bfloat16, torch.float64):
            out = torch.empty(12, 7, dtype=dtype)
            reader.read_into(stored, out, slice(5, 17))
            assert out.equal(tensor[5:17].to(dtype))
        scaled, scale = torch.empty(40, 7, dtype=torch.bfloat16), torch.rand(40, 1)
        reader.read_into(stored, scaled, scale=scale)
        assert scaled.equal((tensor * scale).bfloat16())


def test_what_was_read_is_memory_of_its_own(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [OutgoingTensor("x", torch.ones(4), torch.float32)])
    with Reader() as reader:
        tensor = reader.read(read_header(path)["x"])
    path.write_bytes(b"")
    assert tensor.tolist() == [1, 1, 1, 1]


def test_a_file_that_shrinks_after_the_check_is_reported(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [OutgoingTensor("x", torch.ones(400), torch.float32)])
    stored = read_header(path)["x"]
    os.truncate(path, 200)
    with Reader() as reader, pytest.raises(CheckpointError, match=r"x\.safetensors: ends at 200 bytes inside x"):
        reader.read(stored)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry()}, b"\0" * 7, r"truncated: expected \d+ bytes, file has \d+ bytes"),
        ({"a": entry()}, b"\0" * 9, r"trailing bytes: expected \d+ bytes, file has \d+ bytes"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12, "'b' overlaps the one before"),
        ({"a": entry(), "b": entry()}, b"\0" * 8, "overlaps the one before"),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20, "'b' leaves a gap"),
        ({"a": entry(offsets=(4, 12))}, b"\0" * 12, "'a' leaves a gap"),
        ({"a": entry(offsets=(8, 0))}, b"\0" * 8, "data_offsets must be"),
        ({"a": entry(offsets=(-8, 0))}, b"", "data_offsets must be"),
        ({"a": entry(offsets=(0, 8, 9))}, b"\0" * 8, "data_offsets must be"),
        ({"a": entry(offsets=(0, 2**70))}, b"", "data_offsets must be"),
        ({"a": entry(shape=(3,))}, b"\0" * 8, r"F32 \[3\] needs 12 bytes, data_offsets give 8"),
        ({"a": entry(shape=(2**62, 2**62))}, b"\0" * 8, "needs"),
        ({"a": entry(shape=(-2,))}, b"\0" * 8, "shape must be"),
        ({"a": entry(shape=(2.0,))}, b"\0" * 8, "shape must be"),
        ({"a": entry(shape=(True, 2))}, b"\0" * 8, "shape must be"),
        ({"a": entry(shape=[1] * 9)}, b"\0" * 4, "shape must be"),
        ({"a": entry(dtype="F33")}, b"\0" * 8, "unknown dtype 'F33'"),
        ({"a": entry(dtype=["F32"])}, b"\0" * 8, "unknown dtype"),
        ({"a": entry() | {"extra": 1}}, b"\0" * 8, "exactly the keys"),
        ({"a": {"dtype": "F32"}}, b"", "exactly the keys"),
        ({"a": 3}, b"", "exactly the keys"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__ must map strings"),
        ({"__metadata__": 5}, b"", "__metadata__ must map strings"),
        ([], b"", "header is list"),
        (b"nonsense", b"", "not valid JSON"),
        (b"\xff\xfe", b"", "not valid JSON"),
        (b'{"a":' * 50_000, b"", "not valid JSON"),
        (b'{"a": NaN}', b"", "NaN is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "not valid JSON"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', b"", "'dtype' appears twice"),
        (b'{"a": 1, "b": 2, "b": 3}', b"", "'b' appears twice"),
    ],
)
def test_a_malformed_header_is_refused(tmp_path, header, data, message):
    path = write_file(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes is too short"),
        (b"\1\0\0", "3 bytes is too short"),
        (struct.pack("<Q", 100) + b"{}", "truncated: expected at least 108 bytes for the header, file has 10 bytes"),
        (struct.pack("<Q", 2**63) + b"{}", "header of 9223372036854775808 bytes"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1), "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs pointer"),
        (b"PK\3\4" + b"\0" * 60, "header of"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, message):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "bad.safetensors")


def test_too_many_tensors_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("openglm.checkpoint.reader.MAX_TENSORS", 3)
    path = write_file(tmp_path / "bad.safetensors", {str(i): entry(shape=(0,), offsets=(0, 0)) for i in range(4)})
    with pytest.raises(CheckpointError, match="4 tensors"):
        read_header(path)


def test_a_pipe_or_a_directory_or_nothing_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("pipe", "folder", "absent"):
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors"):
            read_header(tmp_path / f"{name}.safetensors")


@UNHURRIED
@given(st.data())
def test_a_damaged_file_is_read_correctly_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    write_safetensors(path, [OutgoingTensor(f"t{i}", torch.full((i, 3), i), torch.float32) for i in range(4)], {"format": "pt"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "digit"])):
            case "flip":
                content[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del content[max(1, at) :]
            case "insert":
                content[at:at] = data.draw(st.binary(max_size=9))
            case "digit":
                digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
                if digits:
                    content[digits[at % len(digits)]] = data.draw(st.sampled_from(b"0123456789"))
    path.write_bytes(content)
    try:
        header = read_header(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return
    with Reader() as reader:
        sizes = [reader.read(stored).nbytes for stored in header.values()]
    assert 8 + int.from_bytes(content[:8], "little") + sum(sizes) == len(content)
