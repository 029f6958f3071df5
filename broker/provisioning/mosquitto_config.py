"""Mosquitto's files for a fleet: its configuration and its ACL, as text."""

from pathlib import PurePosixPath

from midge.broker.local.mosquitto import MAX_QUEUED_MESSAGES
from midge.broker.mqtt.endpoint import is_loopback
from midge.broker.provisioning import acl
from midge.broker.provisioning.fleet_registry import (
    AGGREGATOR,
    HOME_ASSISTANT,
    ISSUER,
    MASK_HELPER,
    OPERATOR,
    VICTIM,
    Fleet,
)

PID_FILE = "mosquitto.pid"
MAX_PACKET = 1024 * 1024
"""Bytes. Chunks are at most 256 KiB, and larger updates are cut; the rest is headroom."""
_MAX_QUEUED = 48 * 1024 * 1024
"""Bytes queued for one client: what a federation sends in six seconds at its default rate of 8 MB/s. What comes beyond
is dropped and sent again; Mosquitto applies no back-pressure, so one client can make it hold this much."""
_MEMORY, _MEMORY_PER_MEMBER = 320 * 1024 * 1024, 128 * 1024
"""Bytes that the broker may take, and those for each participant: see the configuration."""
_MAX_INFLIGHT = 20
_BY_CERTIFICATE = """\
cafile {here}/ca.crt
crlfile {here}/crl.pem
require_certificate true
# A client is who its certificate says, whatever user name it gives.
use_identity_as_username true"""
_BY_PASSWORD = "password_file {here}/passwords"  # noqa: S105 - a file's name


def configuration(fleet: Fleet) -> str:
    """`mosquitto.conf`, complete, for Mosquitto 2.0 and 2.1."""
    here = PurePosixPath(fleet.broker_directory)
    near = all(is_loopback(host) for host in fleet.hosts)
    who = _BY_CERTIFICATE if fleet.way == "certificates" else _BY_PASSWORD
    return f"""\
# Mosquitto 2.x for the federation {fleet.name!r}: mosquitto -c {here}/mosquitto.conf

per_listener_settings false
listener {fleet.port}{" 127.0.0.1" if near else ""}
tls_version tlsv1.2
certfile {here}/broker.crt
keyfile {here}/broker.key
{who.format(here=here)}
# And the name is the client id, so that no client can disconnect another by taking its id. The price is one
# connection for each identity: a copied one shows as two that take turns.
use_username_as_clientid true

allow_anonymous false
acl_file {here}/acl

# Bytes. Chunks of models and updates are at most 256 KiB; the rest is room. Without this, 2.0 takes 256 MB.
max_packet_size {MAX_PACKET}
# Beyond this many messages for one client Mosquitto drops new ones and does not tell their sender (default: 1000).
# Nothing is lost by it, but everything is sent again. A number, not 0: that has had bugs.
max_queued_messages {MAX_QUEUED_MESSAGES}
max_queued_bytes {_MAX_QUEUED}
max_inflight_messages {_MAX_INFLIGHT}
# Midge sends nothing with QoS 2, of which a broker holds each message until its sender lets go of it.
max_qos 1
# Bytes of everything that clients have it keep. Room for a model of 30 MB with its steps, a full queue of the
# aggregator and one of a device that reads nothing, and the connections of the fleet as it was made. Beyond it
# messages are refused, in place of this machine's other work: make it smaller on a machine with less than twice this.
memory_limit {_MEMORY + _MEMORY_PER_MEMBER * len(fleet.members)}
# Midge's own sessions end with their connection. Sessions of another kind expire after a day.
persistent_client_expiration 1d
# Else a message that follows an acknowledgement waits for 40 ms.
set_tcp_nodelay true

# Off: outboxes and the aggregator's store hold everything, and a broker's disk that comes back older than they are
# could only serve an old model. An aggregator publishes again what a restarted broker has forgotten.
persistence false

# No addresses of devices in the log.
connection_messages false
log_dest stderr
log_type error
log_type warning

# For `midge device revoke`, which tells a running broker by SIGHUP.
pid_file {here}/{PID_FILE}
# The user that Mosquitto becomes if root starts it: one that may read the files above.
user {fleet.broker_user}
"""


def access(fleet: Fleet) -> str:
    """The ACL file of a fleet's own broker, or the lines that another broker's lacks."""
    gone = sorted(name for name, member in fleet.members.items() if member.revoked is not None)
    others = (AGGREGATOR, OPERATOR, ISSUER, HOME_ASSISTANT, MASK_HELPER)
    kept = sorted(name for name in fleet.members if name not in (*gone, *others))
    home, helper = (name in fleet.members and name not in gone for name in (HOME_ASSISTANT, MASK_HELPER))
    head = ["# Written by Midge, and rewritten at each change of the fleet."]
    if fleet.way == "join":
        head = [
            "# For the ACL of a broker whose users have the participants' names, in place of what it had of this file.",
            "# 'pattern' lines hold for all.",
        ]
    parts = [
        head,
        acl.of_aggregator(fleet.topics, AGGREGATOR),
        acl.of_operator(fleet.topics, OPERATOR, VICTIM),
        acl.of_issuer(fleet.topics, ISSUER) if ISSUER in fleet.members else [],
        acl.of_home_assistant(fleet.topics, HOME_ASSISTANT) if home else [],
        acl.of_helper(fleet.topics, MASK_HELPER) if helper else [],
        ["# Revoked, and so without a right even while connected.", *acl.denied(gone)] if gone else [],
        acl.of_devices(fleet.topics, kept),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def passwords(fleet: Fleet) -> str:
    """The password file: all members that are not revoked."""
    kept = {name: each.password for name, each in fleet.members.items() if each.password and each.revoked is None}
    return "".join(f"{name}:{kept[name]}\n" for name in sorted(kept))
