"""mosquitto's configuration and access list, written by `init`.

Who may write what is decided here, by certificate: `use_identity_as_username` makes the CN the
user, `use_username_as_clientid` keeps one robot from taking over another's session, and the
patterns bind each robot to its own topics. Works for root and for a normal user: mosquitto started
as root would change to the user `mosquitto`, who cannot read the keys, hence `user`.
"""

from __future__ import annotations

import getpass
from pathlib import Path

from coordinator.config import CoordinatorConfig
from coordinator.identity.layout import Layout
from host.files import write_durable
from protocol.messages import MAX_PAYLOAD_BYTES
from protocol.topics import COORDINATOR_IDENTITY, Kind, Topics

CONFIGURATION_NAME = "mosquitto.conf"
ACCESS_NAME = "acl"

# The fixed header and the properties of an MQTT packet beside its payload.
PACKET_OVERHEAD_BYTES = 4096


def render_access(fleet: str) -> str:
    """The access list: what the coordinator and each robot (`%u`, its CN) may write and read."""
    topics = Topics(fleet)
    lines = ["# The coordinator announces and listens.", f"user {COORDINATOR_IDENTITY}"]
    lines += [f"topic readwrite {topics.window()}", f"topic readwrite {topics.release()}"]
    lines += [f"topic write {topics.of_every_agent(Kind.COMMAND)}"]
    lines += [
        f"topic read {topics.of_every_agent(kind)}"
        for kind in (Kind.STATUS, Kind.ANSWER, Kind.EVENT)
    ]
    lines += ["", "# A robot speaks for itself alone, and hears nobody but the coordinator."]
    lines += [f"pattern read {topics.window()}", f"pattern read {topics.release()}"]
    own = f"{topics.base}/agents/%u"
    lines += [f"pattern write {own}/{kind}" for kind in (Kind.STATUS, Kind.ANSWER, Kind.EVENT)]
    lines += [f"pattern read {own}/{Kind.COMMAND}"]
    return "\n".join(lines) + "\n"


def render_configuration(layout: Layout, config: CoordinatorConfig, user: str) -> str:
    """mosquitto.conf for 2.0 and later; all paths are absolute."""
    root = layout.root.resolve()
    here = Layout(root)
    return f"""\
# Written by `armada coordinator init`. Start with:
#   mosquitto -c {here.mosquitto / CONFIGURATION_NAME}
user {user}
per_listener_settings true
persistence true
persistence_location {here.mosquitto / "data"}/
autosave_interval 60
persistent_client_expiration 7d
log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages true
message_size_limit {MAX_PAYLOAD_BYTES}
max_packet_size {MAX_PAYLOAD_BYTES + PACKET_OVERHEAD_BYTES}
max_queued_messages 1000
max_inflight_messages 20
max_keepalive 120

listener {config.ports.mqtt} {config.host}
protocol mqtt
cafile {here.ca_certificate}
certfile {here.server_certificate}
keyfile {here.server_key}
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file {here.mosquitto / ACCESS_NAME}
"""


def write_broker_files(layout: Layout, config: CoordinatorConfig) -> Path:
    """Write both files and the data folder; returns the path for `mosquitto -c`."""
    (layout.mosquitto / "data").mkdir(parents=True, exist_ok=True)
    write_durable(layout.mosquitto / ACCESS_NAME, render_access(config.fleet).encode(), mode=0o600)
    path = layout.mosquitto / CONFIGURATION_NAME
    write_durable(path, render_configuration(layout, config, getpass.getuser()).encode())
    return path
