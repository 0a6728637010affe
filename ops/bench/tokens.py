"""HS256 tokens (RFC 7519) of the users that the benchmark calls as."""

import base64
import functools
import hashlib
import hmac
import json
import secrets
import time

# Proxies are given the same one, as text; it belongs to one run.
SECRET = secrets.token_hex(32)
USERS = [f"user-{number:02}" for number in range(20)]
# A user who has not subscribed.
STRANGER = "stranger"
LIFE_SECONDS = 86_400
# What the gateway's own tokens carry.
FLAGS = (
    "ui_access", "manage_users", "manage_apis", "manage_endpoints", "manage_groups", "manage_roles", "manage_routings",
    "manage_gateway", "manage_security", "manage_subscriptions", "export_logs", "view_logs",
)  # fmt: skip


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwks():
    """The secret as a set of keys (RFC 7517)."""
    return json.dumps({"keys": [{"kty": "oct", "alg": "HS256", "k": base64url(SECRET.encode())}]})


def signed(user, secret=SECRET, algorithm="HS256", expires_in=LIFE_SECONDS):
    now = int(time.time())
    claims = {
        "sub": user, "role": "caller", "exp": now + expires_in, "jti": secrets.token_hex(16), "iat": now,
        "accesses": dict.fromkeys(FLAGS, False),
    }  # fmt: skip
    parts = ({"typ": "JWT", "alg": algorithm}, claims)
    message = ".".join(base64url(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
    signature = hmac.digest(secret.encode(), message.encode(), hashlib.sha256)
    return f"{message}.{base64url(signature)}"


@functools.cache
def of(user):
    """The good token of a user, until `renew`."""
    return signed(user)


def renew():
    """Issues new ones: a gateway takes no token that is older than its user."""
    of.cache_clear()


def bad(user):
    """Tokens that must not be let in, by what is wrong with them."""
    message, _, signature = of(user).rpartition(".")
    other = "B" if signature[0] == "A" else "A"
    return {
        "no token at all": None,
        "a changed signature": f"{message}.{other}{signature[1:]}",
        "the signature of another key": signed(user, secret=secrets.token_hex(32)),
        "no signature": f"{signed(user, algorithm='none').rpartition('.')[0]}.",
        # Envoy allows for a minute of clock skew.
        "an end an hour ago": signed(user, expires_in=-3_600),
        "claims of another user": ".".join([message.split(".")[0], of(USERS[-1]).split(".")[1], signature]),
    }
