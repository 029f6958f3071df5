"""golden/vectors.txt and vectors.h: made of today's code, complete, and readable by who knows neither Python nor us."""

import json
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from midge.wire import rice, steps
from tests.wire import flat_vectors, vector_files
from tests.wire.test_golden import VECTORS

PROGRAM = """\
#include "%s"
#include <stdio.h>

int main(void) {
    const midge_vector_field *v;
    for (v = midge_vectors; v->name; v++) {
        const unsigned char *p = v->value;
        unsigned long sum = 0;
        size_t n;
        for (n = 0; n < v->size; n++)
            sum = sum * 31 %% 1000003 + p[n];
        printf("%%s %%s %%lu %%lu\\n", v->name, v->key, (unsigned long)v->size, sum);
    }
    return 0;
}
"""


def read() -> list[dict[str, str]]:
    """The records, as a reader in any language would."""
    text = "\n".join(line for line in flat_vectors.TEXT.read_text().splitlines() if not line.startswith("#"))
    return [dict(line.partition(" ")[::2] for line in record.splitlines()) for record in text.strip().split("\n\n")]


def test_the_files_are_those_that_the_code_makes() -> None:
    """Seen to fail on a default that changed, and on a codec that rounded otherwise."""
    pytest.importorskip("cryptography")
    assert flat_vectors.TEXT.read_text() == vector_files.text(flat_vectors.records()), (
        "run: python -m tests.wire.flat_vectors"
    )
    assert flat_vectors.HEADER.read_text() == vector_files.header(flat_vectors.records()), (
        "run: python -m tests.wire.flat_vectors"
    )


def test_every_golden_vector_is_among_them_and_no_name_comes_twice() -> None:
    found = [record["name"] for record in read()]
    assert len(set(found)) == len(found)
    assert set(VECTORS) <= set(found)


def test_they_have_what_the_golden_ones_lack() -> None:
    """Shifts, low bits in both streams, several sections, two blocks; long spans; halved and clipped encodings."""
    found = {record["name"]: record for record in read()}
    tables = []
    for record in found.values():
        if record["do"] == "integers":
            data, size = bytes.fromhex(record["bytes"]), int(record["size"])
            sections = -(-min(size, steps.BLOCK) // steps.SECTION)
            tables += [struct.unpack_from("<HBBB", data, 8 + 5 * number) for number in range(sections)]
    assert any(shift for _, shift, _, _ in tables) and any(a for _, _, a, _ in tables) and any(b for *_, b in tables)
    assert any(int(record.get("size", 0)) > steps.BLOCK for record in found.values() if record["do"] == "integers")
    spans = [
        frame[1] for record in found.values() if record["do"] == "offers" for frame in json.loads(record["frames"])
    ]
    assert {30, 31, 40} <= set(spans)
    kinds = {record["do"] for record in found.values()}
    assert kinds == {
        *("read", "delta", "encode", "integers", "offers", "slot", "share", "spread", "steps", "cut", "log", "verify"),
        *("open", "schema"),
    }
    clipped = found["uq-clipped-3"]
    left, after = (np.frombuffer(bytes.fromhex(clipped[key]), "<f4") for key in ("left", "after"))
    assert np.linalg.norm(after) < np.linalg.norm(left)
    assert rice.WIDEST == 30


def test_each_encoding_decodes_to_what_its_record_says() -> None:
    for record in read():
        if record["do"] == "encode":
            given, left, values, after = (
                np.frombuffer(bytes.fromhex(record[key]), "<f4") for key in ("input", "left", "values", "after")
            )
            missing = given + left - values
            limit = 2 * np.median([*json.loads(record["norms"]), np.linalg.norm(given)][-9:])
            missing *= min(1.0, limit / max(1e-30, float(np.linalg.norm(missing))))
            np.testing.assert_allclose(after, missing, rtol=2**-7, atol=1e-9)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (apt-get install gcc libc6-dev)")
def test_the_header_compiles_as_c99_and_holds_the_same(tmp_path: Path) -> None:
    program = tmp_path / "print.c"
    program.write_text(PROGRAM % flat_vectors.HEADER)
    subprocess.run(["cc", "-std=c99", "-Wall", "-pedantic", "-Werror", "-o", tmp_path / "print", program], check=True)
    printed = subprocess.run([tmp_path / "print"], check=True, capture_output=True, text=True).stdout.splitlines()
    rows = iter(printed)
    for record in flat_vectors.records():
        for key, value in record.given.items():
            data = vector_files.octets(record, value)
            total = 0
            for byte in data:
                total = total * 31 % 1000003 + byte
            assert next(rows) == f"{record.name} {key} {len(data)} {total}"
