"""Where an agent is found, for those who may not import the configuration's checker."""

from __future__ import annotations

DEFAULT_CONFIG = "/etc/armada/agent.toml"
CONFIG_VARIABLE = "ARMADA_CONFIG"  # of the environment; names another file
STATE_DIR_VARIABLE = "ARMADA_AGENT_PATHS__STATE_DIR"
AGENT_SOCKET = "run/agent.sock"  # in the state folder
