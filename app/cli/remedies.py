"""What to do about an error, in the options of the command that was run.

Errors of `pipelines` carry a code and a remedy that names no option, since the HTTP service shows
them too. A row here says the same in the words of one command. A test checks that each option named
here exists on that command.
"""

from __future__ import annotations

from typing import Final

REMEDIES: Final[dict[str, dict[str, str]]] = {
    "missing-mpp": {
        "prepare": "give --mpp or an mpp column in the manifest, "
        "or take the objective's with --mpp-from-objective",
        "analyse": "give its mpp (micrometres per pixel) with --mpp",
    },
    "implausible-mpp": {
        "prepare": "correct its mpp column in the manifest, or --mpp",
        "analyse": "give the true micrometres per pixel with --mpp",
    },
}
"""By code of the error (`SlideError.code`), then by command."""


def remedy(code: str, command: str) -> str | None:
    """What to do in the words of this command; None if the error's own remedy says it."""
    return REMEDIES.get(code, {}).get(command)
