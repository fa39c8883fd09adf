"""`python -m chat`."""

import signal
import sys

# To a container's first process the kernel brings no signal that it has no handler for: one that is sent while we
# import, or open the store, would be lost, and we would be killed for not going.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

from chat.server import main  # noqa: E402 - it takes its time

if __name__ == "__main__":
    sys.exit(main())
