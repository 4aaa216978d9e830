"""`python -m pipelines.slide_worker DESCRIPTOR`: prepares slides for `local_workers`.

Sends None when it is ready. Then it receives (row, config) on the connection with this file
descriptor, and sends back the outcome, or the OutputError that ends the run. It ends when the other
end does.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from pipelines.preparation import OutputError, SlideOutcome
from pipelines.prepare_slide import prepare_slide


def serve(connection: Connection) -> None:
    """Prepare what comes, until the connection is closed."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(None)
        while True:
            row, config = connection.recv()
            result: SlideOutcome | OutputError
            try:
                result = prepare_slide(row, config)
            except OutputError as error:
                result = error
            connection.send(result)


if __name__ == "__main__":
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # our errors say what is damaged
    serve(Connection(int(sys.argv[1])))
