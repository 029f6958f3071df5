"""The README of a fleet's directory: its folders, and the next commands."""

from pathlib import Path

from midge.broker.provisioning.fleet_registry import AGGREGATOR, Fleet
from midge.broker.provisioning.mosquitto_config import PID_FILE

_FOLDERS = """\
| folder | is for | holds |
|---|---|---|
| `broker/` | the broker's machine | `mosquitto.conf`, ACL, its certificate, who is revoked |
| `aggregator/` | the aggregator's machine | its bundle, and `release.key`, which signs what devices trust |
| `devices/NAME/`, `NAME.tar` | that device only | its bundle |
| `operator/` | you | a bundle that may look on: `midge status`, the doctor; and may ask for a `midge survey` |
| `probes/` | you | the doctor's own identities |
| `issuer/`, `granted/` | `midge broker renewals` | what answers devices that ask for new credentials |
| `authority/` | you; best kept off every network | the key that makes certificates |
| `fleet.json` | `midge device-…` | who belongs to the fleet |
"""

_MANAGING = """\
    midge device list   --fleet .
    midge device add    --fleet . pump-17
    midge device revoke --fleet . dev0007      # at once, connected or not
    midge device rotate --fleet . dev0008      # a new key; the old one is good until --finish
    midge broker renewals --fleet .            # now and then: devices renew their credentials by themselves
"""


def guide(fleet: Fleet, directory: Path) -> str:
    """Text for a fleet with a broker of its own."""
    here = Path(fleet.broker_directory) == (directory / "broker").resolve()
    before = "" if here else f"Copy `broker/` to `{fleet.broker_directory}` on the broker's machine first.\n\n"
    how = "passwords" if fleet.way == "passwords" else "certificates"
    return f"""\
# The fleet of federation {fleet.name!r}

The next three commands, in this directory but the last:

{before}    mosquitto -c {fleet.broker_directory}/mosquitto.conf
    midge broker check --fleet .                                   # tries the attacks: all must fail
    midge aggregate server:app --config {directory.resolve()}/aggregator/aggregator.toml

Then carry each `devices/NAME.tar` to its device, and there:

    midge device pump:app --config NAME/device.toml

Devices reach the broker at {fleet.broker} and show {how}.

{_FOLDERS}
## Devices

{_MANAGING}
`device revoke` tells a broker on this machine itself (SIGHUP, by `{fleet.broker_directory}/{PID_FILE}`), and prints the
commands where it runs elsewhere.

One identity has one connection: a second one with the same credentials puts the first off the broker. So a copied
bundle shows, as two devices that take turns, and no device can take another's connection.
"""


def joining_guide(fleet: Fleet) -> str:
    """Text for a fleet that joins an existing broker and authority."""
    return f"""\
# The fleet of federation {fleet.name!r}, at {fleet.broker}

The broker and its authority belong to another team. Ask them for this, then look whether it is so:

1. **Certificates.** Each bundle (`devices/NAME/`, `{AGGREGATOR}/`, `operator/`, `probes/*/`) holds a key and a request,
   `*.csr`. Have each signed as a client's certificate whose common name stays the participant's name, and put it beside
   the request as `device.crt` (`aggregator.crt`, `operator.crt`). Keys never leave their bundle.
2. **Rights.** `broker/acl-to-add` holds the lines that Midge needs, and no more. The broker must know a user by the
   common name (Mosquitto: `use_identity_as_username true`). Lines of theirs that give all users more undo them.
3. **Limits.** Packets of 264 KiB or more (`max_packet_size`), and `max_queued_messages 1000000`.
4. `midge broker check --fleet .` tries the attacks with the bundles in `operator/` and `probes/`.

## One certificate, one connection

Where the broker takes the identity for the client id (Mosquitto: `use_username_as_clientid true`; AWS IoT: a policy on
`iot:Connection.Thing.ThingName`), **a gateway that sends telemetry with a certificate must not give the same one to
Midge**: each of the two would disconnect the other, forever. The ways around it, best first:

- a certificate of Midge's own, which is what these requests are: another common name than the telemetry's;
- one connection for both: Midge behind a broker on the gateway itself, bridged;
- a listener without `use_username_as_clientid` for Midge, whose client ids are unlike all others. Then, however,
  any client that is let in there may take another's session.

{_FOLDERS}"""
