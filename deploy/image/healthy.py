"""Exits 0 if the worker of this container answers 200 at a path of its HTTP port. Needs the standard library only."""

import os
import sys
import urllib.error
import urllib.request
from http import HTTPStatus

TIMEOUT_SECONDS = 4.0


def healthy(path: str) -> bool:
    port = os.environ.get("CEREMONY_HTTP_ADDR", "0.0.0.0:8080").rpartition(":")[2]
    # Without the proxies of the environment.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT_SECONDS) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except (OSError, urllib.error.URLError):
        return False


if __name__ == "__main__":
    sys.exit(0 if healthy(sys.argv[1] if len(sys.argv) > 1 else "/livez") else 1)
