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
        ("mqtt://[fe80::1%25eth0]:1884", "fe80::1%eth0", 1884, False, False),
        ("mqtt://[FE80::1%25Wlan0]", "fe80::1%Wlan0", 1883, False, False),
        ("mqtt://[fe80::1%eth0]", "fe80::1%eth0", 1883, False, False),
        ("mqtts://user%40home:p%2Fa%3F@broker:443?alpn=mqtt", "broker", 443, True, False),
        (" mqtt://localhost\n", "localhost", 1883, False, False),
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
        ("mqtt://user:secret[@localhost", "%5B"),
        ("mqtt://user:secret/x@localhost", r"'/' in its user or password: percent-encode it \(%2F\)"),
        ("mqtt://user:secret/x@localhost:1883", "%2F"),
        ("mqtts://user:secret?x@localhost", "%3F"),
        ("mqtts://user:secret#x@localhost", "%23"),
        ("wss://user:secret/x@localhost/mqtt", "%2F"),
        ("mqtt://user@home:secret/x@localhost", "%2F"),
        ("mqtt://user:secret x@localhost", "%20"),
        ("mqtt://user:secret%FF@localhost", "UTF-8"),
        ("mqtts://localhost?x=secret", "only mqtts://host"),
        ("mqtts://localhost?alpn=", "names one protocol"),
        ("mqtt://localhost?alpn=mqtt", "part of TLS"),
        ("mqtt://:secret@localhost", "without a user"),
    ],
)
def test_one_sentence_for_each_thing_wrong(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as wrong:
        Endpoint.parse(url)
    assert "secret" not in str(wrong.value)


def test_reserved_characters_of_a_user_and_a_password_are_percent_encoded() -> None:
    endpoint = Endpoint.parse("mqtt://hub%2Fpump%40home:%2F%3F%23%5B%5D%40%3A%25%20%C3%A9@localhost")
    assert (endpoint.user, endpoint.password) == ("hub/pump@home", "/?#[]@:% é")


def test_a_query_belongs_to_websockets_and_is_not_shown() -> None:
    endpoint = Endpoint.parse("wss://broker.example/mqtt?X-Amz-Signature=secret%2F@x&a=b")
    assert endpoint.path == "/mqtt?X-Amz-Signature=secret%2F@x&a=b" and endpoint.port == 443
    assert "secret" not in f"{endpoint} {endpoint!r}"
    assert Endpoint.parse("ws://broker.example?token=x").path == "/mqtt?token=x"


def test_protocols_to_offer_in_tls() -> None:
    endpoint = Endpoint.parse("mqtts://broker.example:443?alpn=x-amzn-mqtt-ca,mqtt", tls=Tls(cafile=Path("ca.pem")))
    assert endpoint.tls == Tls(cafile=Path("ca.pem"), alpn=("x-amzn-mqtt-ca", "mqtt"))
    assert Endpoint.parse(str(endpoint), tls=Tls(cafile=Path("ca.pem"))) == endpoint


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
