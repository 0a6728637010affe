"""doorman-gateway: its manifests, and what its platform API is told before a measurement."""

import http.client
import json
import os
import secrets
import urllib.parse
from contextlib import nullcontext

import stores
import tokens
from cases import ENDPOINTS, EVERYTHING, FORWARD, NO_LIMIT, ORIGIN
from proxies import Proxy, first_line

ADMIN = ("admin@example.com", secrets.token_urlsafe(24))
GROUP, ROLE, CREDITS = "callers", "caller", "calls"
# Largest limit of a tier that is one.
TIER_LIMIT = 999_998
PLENTY = 1_000_000_000_000


class Doorman(Proxy):
    name = "doorman"
    readiness_path = "/platform/monitor/readiness"
    apis_per_file = 100
    binary = None

    def missing(self):
        if self.binary and self.binary.exists():
            return None
        return f"doorman-gateway is missing: there is no {self.binary}; run again without --no-build."

    def version(self):
        return first_line([self.binary, "--version"]).split()[-1]

    def asks_for_tokens(self, case):
        return case.work != FORWARD

    def answer_bytes(self, case):
        envelope = len('{"status_code":200,"response":}') if case.work == EVERYTHING else 0
        return case.body_bytes + envelope

    def endpoints(self, case, sizes):
        if case.work == EVERYTHING:
            return [{"method": "POST", "uri": f"/bytes/{case.body_bytes}", "validation": {"rules": RULES}}]
        if case.tells_endpoints:
            uris = [f"/bytes/{case.body_bytes}/r{number}/{{id}}" for number in range(ENDPOINTS)]
        else:
            uris = [f"/bytes/{size}" for size in sizes]
            uris += [f"/items/{number}/{{id}}" for number in range(ENDPOINTS - len(uris))]
        return [{"method": "GET", "uri": uri} for uri in uris]

    def write(self, folder, case, ports, sizes, limit=NO_LIMIT):
        manifests = folder / "manifests"
        manifests.mkdir()
        base = {
            "version": "v1",
            "protocol": "REST",
            "public": not self.asks_for_tokens(case),
            "servers": [f"http://127.0.0.1:{ports['upstream']}"],
            "endpoints": self.endpoints(case, sizes),
            **(POLICIES if case.work == EVERYTHING else {}),
            **({"credits": {"enabled": True, "group": CREDITS}} if case.charges else {}),
        }
        documents = [manifest("DoormanApi", f"{name}-v1", {"name": name, **base}) for name in case.names()]
        if self.asks_for_tokens(case):
            documents.append(manifest("DoormanRole", ROLE, {"name": ROLE}))
        for start in range(0, len(documents), self.apis_per_file):
            text = "\n---\n".join(documents[start : start + self.apis_per_file])
            (manifests / f"apis-{start:05}.yaml").write_text(text + "\n")

    def command(self, folder):
        return [self.binary, "--manifests", folder / "manifests"]

    def environment(self, case, ports):
        general = {
            "PATH": os.environ.get("PATH", ""),
            "MEM_OR_EXTERNAL": "MEM",
            "PORT": str(ports["proxy"]),
            "DOORMAN_ADMIN_PORT": str(ports["admin"]),
            "JWT_SECRET_KEY": tokens.SECRET,
            "TOKEN_ENCRYPTION_KEY": secrets.token_hex(32),
            "DOORMAN_ADMIN_EMAIL": ADMIN[0],
            "DOORMAN_ADMIN_PASSWORD": ADMIN[1],
            "LOG_LEVEL": "WARNING",
            "DOORMAN_DRAIN_SECONDS": "0",
            "TOKIO_WORKER_THREADS": "1",
        }
        if case.work != EVERYTHING:
            return general
        return general | {
            "MEM_OR_EXTERNAL": "REDIS",
            "REDIS_HOST": f"127.0.0.1:{ports['redis']}",
            "MONGO_DB_HOSTS": f"127.0.0.1:{ports['mongo']}",
            "LOG_LEVEL": "INFO",
        }

    def stores(self, case, core, folder, ports):
        return stores.Stores(core, folder, ports) if case.work == EVERYTHING else nullcontext()

    def set_up(self, case, ports, limit=NO_LIMIT):
        """Users with their limits, and all else that is not in the manifests."""
        if case.work == FORWARD:
            return
        platform = Platform(ports["proxy"])
        platform.sends("POST", "/group", {"group_name": GROUP})
        api = {"api_name": case.names()[0], "api_version": "v1"}
        more = {}
        if case.work == EVERYTHING:
            more = everything_of_a_user()
            platform.sends("POST", "/tiers", TIER)
            platform.sends("POST", "/rate-limits", RULE)
        if case.charges:
            platform.sends("POST", "/credit", CREDIT)
        for user in [*tokens.USERS, tokens.STRANGER]:
            platform.sends("POST", "/user", user_of(user, limit) | more)
            if user == tokens.STRANGER:
                continue
            platform.sends("POST", "/subscription/subscribe", {"username": user} | api)
            if case.charges:
                balance = {CREDITS: {"tier_name": "usual", "available_credits": PLENTY}}
                platform.sends("POST", f"/credit/{user}", {"username": user, "users_credits": balance})
        tokens.renew()


def manifest(kind, name, spec):
    # JSON is YAML.
    return json.dumps({"apiVersion": "doorman.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})


def user_of(name, limit):
    return {
        "username": name,
        "email": f"{name}@example.com",
        "password": "Sixteen-or-more-1",
        "role": ROLE,
        "groups": [GROUP],
        "rate_limit_duration": limit,
        "rate_limit_duration_type": "minute",
    }


def everything_of_a_user():
    return {
        "throttle_duration": NO_LIMIT,
        "throttle_duration_type": "minute",
        "throttle_queue_limit": NO_LIMIT,
        "bandwidth_limit_bytes": PLENTY,
        "bandwidth_limit_window": "day",
    }


# What a body must be like.
RULES = {
    "customer.name": {"required": True, "type": "string", "min": 2, "max": 100},
    "customer.email": {"required": True, "type": "string", "format": "email"},
    "items": {
        "required": True,
        "type": "array",
        "min": 1,
        "arrayItems": {
            "required": True,
            "type": "object",
            "nestedSchema": {
                "id": {"required": True, "type": "string", "min": 1},
                "quantity": {"required": True, "type": "number", "min": 1, "max": 1_000},
            },
        },
    },
    "note": {"required": False, "type": "string", "max": 500},
}
POLICIES = {
    "access": {"groups": [GROUP], "roles": [ROLE]},
    "headers": {"allowed": ["x-shop", "x-tenant", "x-channel", "x-served-by"]},
    "requestTransform": {"headers": {"rename": {"x-shop": "x-tenant"}, "add": {"x-channel": "web"}}},
    "responseTransform": {"headers": {"add": {"x-served-by": "doorman"}}},
    "envelope": True,
    "cors": {"allowOrigins": [ORIGIN], "allowCredentials": True},
}
TIER = {
    "tier_id": "usual",
    "name": "custom",
    "display_name": "Usual",
    "is_default": True,
    "limits": {"requests_per_minute": TIER_LIMIT, "monthly_request_quota": PLENTY},
}
RULE = {"rule_id": "all", "rule_type": "global", "time_window": "minute", "limit": NO_LIMIT}
CREDIT = {
    "api_credit_group": CREDITS,
    "api_key": secrets.token_hex(16),
    "api_key_header": "x-api-key",
    "credit_tiers": [
        {"tier_name": "usual", "credits": 1, "input_limit": 1, "output_limit": 1, "reset_frequency": "monthly"}
    ],
}


class Platform:
    """The platform API, as the first administrator."""

    def __init__(self, port):
        self.port, self.token = port, None
        signed_in = self.sends("POST", "/authorization", {"email": ADMIN[0], "password": ADMIN[1]})
        self.token = signed_in["access_token"]
        # At first it is one a second.
        own = {"rate_limit_duration": NO_LIMIT, "throttle_duration": NO_LIMIT, "throttle_queue_limit": NO_LIMIT}
        self.sends("PUT", "/user/admin", own)

    def sends(self, method, path, body=None):
        """What it answers, which must be well."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            path = f"/platform{urllib.parse.quote(path)}"
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if not 200 <= response.status < 300:
            raise RuntimeError(f"{method} {path} was answered with status {response.status}: {text}")
        return json.loads(text) if text else None

    def credits_left(self, user):
        return self.sends("GET", f"/credit/{user}")["users_credits"][CREDITS]["available_credits"]
