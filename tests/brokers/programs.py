"""The brokers, each as a program that is run on a free port of the loopback, with its files in a folder of its own."""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from midge.broker.local.local_broker import BrokerProgram, EmbeddedProgram, MosquittoProgram
from midge.broker.local.process import PATIENCE, dying_with_parent, free_port
from midge.broker.mqtt.connection import BrokerUnreachable
from midge.broker.mqtt.endpoint import Tls

ROOT = Path(__file__).parents[2]
NODE = ROOT / ".venv" / "node"
"""Where `make brokers` has npm install packages."""
LARGEST = 16 * 1024 * 1024
"""Bytes of a packet, where a broker has to be given a limit: that of `midge`'s own Mosquitto."""
SLOW = 90.0
"""Seconds for an Erlang virtual machine with a hundred modules to start beside other work."""
ERLANG = Path("/usr/lib/rabbitmq/lib")


@dataclass
class Program:
    """A broker's command, which is made anew for each start."""

    kind: str
    version: str
    make: Callable[[Path, int], list[str]]
    ready: str
    user: str | None = None
    password: str | None = None
    tls: Tls | None = None
    patience: float = PATIENCE

    def describe(self) -> str:
        return f"{self.kind} {self.version}"

    def command(self, directory: Path, port: int) -> list[str]:
        return self.make(directory, port)


# ------------------------------------------------------------------------- RabbitMQ

RABBITMQ = """listeners.tcp = none
mqtt.listeners.tcp.1 = 127.0.0.1:{port}
mqtt.allow_anonymous = true
mqtt.default_user = guest
mqtt.default_pass = guest
mqtt.retained_message_store = rabbit_mqtt_retained_msg_store_ets
log.console = true
log.file = false
"""


def _rabbitmq() -> Program:
    found = sorted(ERLANG.glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    if not found:
        raise BrokerUnreachable("RabbitMQ is not installed: apt-get install rabbitmq-server")
    server = found[-1]

    def make(directory: Path, port: int) -> list[str]:
        (directory / "rabbitmq.conf").write_text(RABBITMQ.format(port=port))
        (directory / "enabled_plugins").write_text("[rabbitmq_mqtt].\n")
        names = free_port()
        settings = {
            "HOME": directory,  # where Erlang writes its cookie; a dump goes to the working directory, the same
            "ERL_EPMD_PORT": names,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RUNNING_UNDER_SYSTEMD": "1",  # the script becomes the broker, instead of a parent that outlives nothing
            "RABBITMQ_NODENAME": f"midge{port}@localhost",
            "RABBITMQ_DIST_PORT": free_port(),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_MNESIA_BASE": directory / "mnesia",
            "RABBITMQ_LOG_BASE": directory / "log",
            "RABBITMQ_PID_FILE": directory / "pid",
            "RABBITMQ_CONFIG_FILE": directory / "rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": directory / "enabled_plugins",
        }
        # The service of names is a process of its own: it ends with the broker whose child it is.
        daemon = " ".join(dying_with_parent(["epmd", "-port", str(names), "-address", "127.0.0.1"]))
        words = [f"{name}={value}" for name, value in settings.items()]
        # Before it answers, the broker would start another one, which would stay.
        wait = "until epmd -names >/dev/null 2>&1; do sleep 0.05; done"
        return ["env", "--chdir", str(directory), *words, "sh", "-c", f'{daemon} & {wait}; exec "$0"', str(server)]

    version = server.parents[1].name.rpartition("-")[2]
    return Program("rabbitmq", version, make, "started MQTT TCP listener", patience=SLOW)


# ------------------------------------------------------------------------- ejabberd

EJABBERD = """hosts: [localhost]
loglevel: info
listen:
  - port: {port}
    ip: "127.0.0.1"
    module: mod_mqtt
    max_payload_size: {largest}
auth_method: [anonymous]
anonymous_protocol: both
allow_multiple_connections: true
modules:
  mod_mqtt: {{}}
"""


def _ejabberd() -> Program:
    if shutil.which("ejabberdctl") is None or shutil.which("erl") is None:
        raise BrokerUnreachable("ejabberd is not installed: apt-get install ejabberd")
    places = [each.parent for each in Path("/usr/lib").glob("*/ejabberd-*")]
    version = max(each.name.rpartition("-")[2] for each in Path("/usr/lib").glob("*/ejabberd-*"))

    def make(directory: Path, port: int) -> list[str]:
        (directory / "ejabberd.yml").write_text(EJABBERD.format(port=port, largest=LARGEST))
        (directory / "spool").mkdir(exist_ok=True)
        settings = {
            "HOME": directory,
            "ERL_LIBS": places[0],
            "EJABBERD_CONFIG_PATH": directory / "ejabberd.yml",
            "EJABBERD_LOG_PATH": directory / "ejabberd.log",
        }
        words = [f"{name}={value}" for name, value in settings.items()]
        return [
            "env",
            "--chdir",
            str(directory),
            *words,
            "erl",
            "-noinput",
            "-mnesia",
            "dir",
            f'"{directory / "spool"}"',
            "-s",
            "ejabberd",
        ]

    return Program("ejabberd", version, make, "", "midge@localhost", "any", patience=SLOW)


# ------------------------------------------------------------------- aedes, rumqttd

AEDES = """import {{ Aedes }} from {module};
import net from "node:net";
const broker = await Aedes.createBroker({{ concurrency: 1000 }});
net.createServer(broker.handle).listen({port}, "127.0.0.1", () => console.log("serving"));
"""


def _aedes() -> Program:
    package = NODE / "node_modules" / "aedes"
    if shutil.which("node") is None or not package.exists():
        raise BrokerUnreachable(f"aedes is not installed: npm install --prefix {NODE.relative_to(ROOT)} aedes@1.2.0")
    about = json.loads((package / "package.json").read_text())

    def make(directory: Path, port: int) -> list[str]:
        program = directory / "broker.mjs"
        program.write_text(AEDES.format(module=json.dumps((package / "aedes.js").as_uri()), port=port))
        return ["node", str(program)]

    return Program("aedes", about["version"], make, "serving")


RUMQTTD = """id = 0
[router]
id = 0
max_connections = 10000
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v{version}.1]
name = "v{version}-1"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v{version}.1.connections]
connection_timeout_ms = 60000
max_payload_size = {largest}
max_inflight_count = 100
dynamic_filters = true
"""


def _rumqttd(protocol: int) -> Program:
    if importlib.util.find_spec("iotcore") is None:
        raise BrokerUnreachable("rumqttd is not installed: pip install iotcore==0.4.0")
    serving = (
        "from iotcore.iotcore import IotCoreBroker; import sys; IotCoreBroker(config_path=sys.argv[1]).run_forever()"
    )

    def make(directory: Path, port: int) -> list[str]:
        path = directory / "rumqttd.toml"
        path.write_text(RUMQTTD.format(version=protocol, port=port, largest=LARGEST))
        return [sys.executable, "-P", "-c", serving, str(path)]

    return Program("rumqttd" if protocol == 4 else "rumqttd-5", f"of iotcore {metadata.version('iotcore')}", make, "")


PROGRAMS: dict[str, Callable[[], BrokerProgram]] = {
    "mosquitto": MosquittoProgram,
    "embedded": EmbeddedProgram,
    "rabbitmq": _rabbitmq,
    "ejabberd": _ejabberd,
    "aedes": _aedes,
    "rumqttd": lambda: _rumqttd(4),
    "rumqttd-5": lambda: _rumqttd(5),
}
"""Each raises `BrokerUnreachable` where it is not installed, with a sentence on what brings it."""
