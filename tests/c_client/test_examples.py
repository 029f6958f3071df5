"""A compiler takes the examples, against declarations of what they use of their systems; and the one of the README."""

import re
import subprocess
from pathlib import Path

import pytest

from tests import needs
from tests.c_client.compiled import CLIENT, HERE, PATIENCE

WARNED = ("-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{HERE / 'stubs'}", f"-I{CLIENT}")
C = ("-std=c99", "-D_GNU_SOURCE")


def taken(compiler: str, needed: str, *options: str) -> None:
    done = subprocess.run(
        [needs.program(compiler, needed), *options, *WARNED],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_example_for_esp_idf() -> None:
    taken("gcc", needs.GCC, *C, str(CLIENT / "examples" / "esp-idf" / "main" / "main.c"))


def test_the_example_for_arduino() -> None:
    taken("g++", needs.GXX, "-std=c++17", "-x", "c++", str(CLIENT / "examples" / "arduino" / "arduino.ino"))


def test_the_example_of_the_page(tmp_path: Path) -> None:
    (code,) = re.findall(r"```c\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 36
    given = """
        #include "midge.h"
        static void random_bytes(uint8_t *to, unsigned size) { (void)to, (void)size; }
        static bool open_link(const char *host, int port) { return host != 0 && port > 0; }
        static void sleep_ms(unsigned ms) { (void)ms; }
        static const midge_moment moments[12];
        static const uint32_t rows = 9;
        static void row(void *context, uint32_t index, float *inputs, float *target)
        { (void)context, (void)index, (void)inputs, (void)target; }
        void device(const midge_port *board);
    """
    (tmp_path / "page.c").write_text(given + code)
    taken("gcc", needs.GCC, *C, str(tmp_path / "page.c"))


@pytest.mark.parametrize("options", [(), ("-DMIDGE_UNIFORM=0",), ("-DMIDGE_TRAINING=0",)])
def test_the_library_has_no_warnings_whatever_is_left_out(options: tuple[str, ...]) -> None:
    strict = ("-std=c99", "-pedantic", "-Wconversion", "-Wshadow", "-O2")
    taken("gcc", needs.GCC, *strict, *options, str(CLIENT / "midge.c"))
