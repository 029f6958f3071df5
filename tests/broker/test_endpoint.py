import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.broker import BrokerRefused, Endpoint, Tls
from midge.broker.mqtt.tls import tls_context


@pytest.mark.parametrize(
    ("url", "host", "port", "secure", "websockets"),
    [
        ("mqtt://localhost", "localhost", 1883, False, False),
        ("mqtts://broker.example", "broker.example", 8883, True, False),
        ("ws://broker.example", "broker.example", 80, False, True),
        ("wss://broker.example", "broker.example", 443, True, True),
        ("MQTT://Broker.Example:42/", "broker.example", 42, False, False),
        ("mqtt://[::1]:1884", "::1", 1884, False, False),
        ("mqtt://user:pass@10.0.0.1:9", "10.0.0.1", 9, False, False),
    ],
)
def test_addresses(url: str, host: str, port: int, secure: bool, websockets: bool) -> None:
    endpoint = Endpoint.parse(url)
    assert (endpoint.host, endpoint.port) == (host, port)
    assert (endpoint.tls is not None, endpoint.websockets) == (secure, websockets)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("localhost", "begins with its scheme"),
        ("localhost:1883", "begins with its scheme"),
        ("", "begins with its scheme"),
        ("http://localhost", "http:// is not a scheme for MQTT"),
        ("mqtt://", "names no host"),
        ("mqtt://:1883", "names no host"),
        ("mqtt://user:secret@", "names no host"),
        ("mqtt://localhost:0", "from 1 to 65535"),
        ("mqtt://localhost:65536", "from 1 to 65535"),
        ("mqtt://localhost:port", "from 1 to 65535"),
        ("mqtt://localhost:-1", "from 1 to 65535"),
        ("mqtt://localhost/path", "has a path"),
        ("mqtt://localhost?x=1", "percent-encode"),
        ("mqtt://localhost#x", "percent-encode"),
        ("mqtt://[::1", "brackets"),
        ("mqtt://:secret@localhost", "without a user"),
    ],
)
def test_one_sentence_for_each_thing_wrong(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as wrong:
        Endpoint.parse(url)
    assert "secret" not in str(wrong.value)


def test_a_path_belongs_to_websockets() -> None:
    assert Endpoint.parse("ws://localhost").path == "/mqtt"
    assert Endpoint.parse("ws://localhost/other").path == "/other"
    assert str(Endpoint.parse("wss://localhost/other")) == "wss://localhost:443/other"


def test_arguments_go_before_the_address() -> None:
    endpoint = Endpoint.parse("mqtt://anna:old@localhost", password="new")
    assert (endpoint.user, endpoint.password) == ("anna", "new")


def test_tls_settings_want_a_scheme_with_tls() -> None:
    with pytest.raises(ValueError, match="use mqtts:// or wss://"):
        Endpoint.parse("mqtt://localhost", tls=Tls())
    with pytest.raises(ValueError, match="without its certificate"):
        Endpoint.parse("mqtts://localhost", tls=Tls(keyfile=Path("key.pem")))


@given(user=st.text(min_size=1), password=st.text())
def test_credentials_are_percent_decoded_and_the_password_stays_hidden(user: str, password: str) -> None:
    from urllib.parse import quote

    try:
        url = f"mqtt://{quote(user, safe='')}:{quote(password, safe='')}@localhost"
    except UnicodeEncodeError:
        return
    endpoint = Endpoint.parse(url)
    assert (endpoint.user, endpoint.password) == (user, password)
    assert "password" not in repr(endpoint).replace(repr(user), "")  # a user may have that name
    assert str(endpoint) == "mqtt://localhost:1883"


@given(st.text())
def test_any_text_is_an_address_or_a_value_error(url: str) -> None:
    for prefix in ("", "mqtt://", "ws://"):
        try:
            Endpoint.parse(prefix + url)
        except ValueError:
            continue


def test_missing_tls_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BrokerRefused, match=r"no-such\.pem"):
        tls_context(Tls(cafile=tmp_path / "no-such.pem"))


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not a certificate")
    with pytest.raises(BrokerRefused, match=r"wrong\.pem"):
        tls_context(Tls(cafile=wrong))


def test_a_context_is_shared_until_its_files_change() -> None:
    assert tls_context(Tls()) is tls_context(Tls())
    assert tls_context(Tls(insecure=True)) is not tls_context(Tls())


def test_importing_the_package_imports_no_mqtt_library() -> None:
    check = "import sys, midge.broker; print(*sorted({'paho', 'aiomqtt', 'numpy', 'ssl'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert answer.stdout.split() in ([], ["ssl"])
