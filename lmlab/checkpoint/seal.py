"""A checksum of a whole checkpoint file, in the comment of its archive; torch and zip programs read over it.

The sums inside an archive are of its members only. A flipped bit in its directory passes them, and can make torch load memory that nobody
has written.
"""

from __future__ import annotations

import errno
import os
import re
import zipfile
import zlib
from typing import Any, BinaryIO

import torch

SEAL = "lmlab crc32 {:08x}"
SEAL_RULE = re.compile(rb"lmlab crc32 ([0-9a-f]{8})")
SEAL_BYTES = len(SEAL.format(0))
LENGTH_BYTES = 2  # of the comment's length, the last field of an archive, right before the comment
END_BYTES = 22  # of an archive's last record
CHUNK = 1 << 22


class Summing:
    """A file to write to, front to back, that adds up its checksum.

    Args:
        file: Open for writing; empty.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Nothing is written yet."""
        self.file, self.crc32 = file, 0

    def write(self, data: bytes) -> int:
        """Appends.

        Args:
            data: Bytes, or a buffer of them.
        """
        self.crc32 = zlib.crc32(data, self.crc32)
        return self.file.write(data)

    def flush(self) -> None:
        """As a file does."""
        self.file.flush()


def seal(summed: Summing) -> None:
    """Appends the checksum to an archive that has no comment yet.

    Args:
        summed: What the archive was written to.
    """
    file = summed.file
    file.seek(-LENGTH_BYTES, os.SEEK_END)
    file.write(SEAL_BYTES.to_bytes(LENGTH_BYTES, "little"))
    file.write(SEAL.format(summed.crc32).encode())


def what_is_damaged(file: BinaryIO) -> str | None:
    """Reads an archive through.

    Args:
        file: Open for reading. If it has no seal, because another program wrote it, its members are compared with their own sums, and
            torch's reader is asked for each, because it looks at other fields of the directory than Python's.

    Returns:
        What is wrong, if anything is.

    Raises:
        OSError: If it cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - SEAL_BYTES - LENGTH_BYTES))
    tail = file.read()
    found = SEAL_RULE.fullmatch(tail[LENGTH_BYTES:])
    if found is None:
        return _what_is_damaged_inside(file)
    is_sum_of_rest = _sum(file, size - len(tail)) == int(found[1], 16)
    return None if is_sum_of_rest and int.from_bytes(tail[:LENGTH_BYTES], "little") == SEAL_BYTES else "its checksum is wrong"


def _sum(file: BinaryIO, size: int) -> int:
    """Of the first `size` bytes and of the length of no comment, which stood there when the sum was taken."""
    file.seek(0)
    crc = 0
    while size > 0 and (data := file.read(min(CHUNK, size))):
        crc, size = zlib.crc32(data, crc), size - len(data)
    return zlib.crc32(bytes(LENGTH_BYTES), crc)


def _what_is_damaged_inside(file: BinaryIO) -> str | None:
    file.seek(max(0, file.seek(0, os.SEEK_END) - END_BYTES))
    end = file.read()
    if not (end.startswith(b"PK\x05\x06") and end.endswith(bytes(LENGTH_BYTES))):  # the last record of an archive without comment
        return "it does not end as an archive does: truncated, or another kind of file"
    try:
        with zipfile.ZipFile(file) as archive:
            member, listed = archive.testzip(), archive.infolist()
        if member is not None:
            return f"the checksum of '{member}' in it is wrong"
        file.seek(0)
        reader: Any = torch._C.PyTorchFileReader(file)
        names = [one.filename.partition("/")[2] for one in listed]
        offsets = [reader.get_record_offset(name) for name in names]
    except Exception as error:  # readers raise whatever the bytes lead to
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is a seek to where there is no file
            raise
        return "it is not a whole archive: truncated, or another kind of file"
    is_torchs = len(set(offsets)) == len(names) and not any(one.flag_bits & ~0x808 or one.external_attr for one in listed)
    return None if is_torchs else "its directory is not one that torch writes"
