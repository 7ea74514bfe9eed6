"""One signed POST of a JSON document to a receiver outside, within a bound of time; knows nothing of what it tells.

The address may hold a token, so no message names more of it than its host. Redirects are not followed and proxies not
used: what was signed goes to the address that was set, or nowhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import socket
import threading
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from featurestore.errors import FeatureStoreError

#: Carries `sha256=` and the HMAC-SHA256 of the body under the signing secret, in hex.
SIGNATURE = "X-Featurestore-Signature"
#: The id of what is told; the same when it is told again.
EVENT_ID = "X-Featurestore-Event"


class DeliveryFailed(FeatureStoreError):
    """The receiver did not take a document; it may do so later."""

    retryable = True


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """An `http://` or `https://` address, and how it is called. `secret`: the key that bodies are signed with."""

    url: str = field(repr=False)
    secret: bytes | None = field(default=None, repr=False)
    timeout_s: float

    @property
    def host(self) -> str:
        """The part of the address that may be shown."""
        return urlsplit(self.url).hostname or ""

    def post(self, event_id: str, body: bytes) -> None:
        """Deliver `body`, JSON text; DeliveryFailed unless the answer begins with a 2xx within `timeout_s`."""
        address = urlsplit(self.url)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.host, address.port, timeout=self.timeout_s)
        # The connection's own timeout counts for each packet, so a receiver that drips could hold us for ever.
        deadline = threading.Timer(self.timeout_s, _cut, (connection,))
        deadline.daemon = True
        deadline.start()
        target = (address.path or "/") + (f"?{address.query}" if address.query else "")
        try:
            connection.request("POST", target, body, self._headers(event_id, body))
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            # What the receiver wrote stays out of our logs; a system error speaks of the connection alone.
            says = error.strerror or str(error) if isinstance(error, OSError) else type(error).__name__
            raise DeliveryFailed(f"the webhook at {self.host} cannot be reached: {says}") from error
        finally:
            deadline.cancel()
            connection.close()
        if not 200 <= status < 300:
            raise DeliveryFailed(f"the webhook at {self.host} answers {status}; it must answer 2xx, without a redirect")

    def _headers(self, event_id: str, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": "featurestore", EVENT_ID: event_id}
        if self.secret is not None:
            headers[SIGNATURE] = "sha256=" + hmac.new(self.secret, body, hashlib.sha256).hexdigest()
        return headers


def _cut(connection: http.client.HTTPConnection) -> None:
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
