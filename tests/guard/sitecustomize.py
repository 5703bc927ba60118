"""Python imports a module of this name when it starts: so the socket guard reaches the processes that tests start."""

import network_guard  # noqa: F401
