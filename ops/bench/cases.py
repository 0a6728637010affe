"""What is measured: the APIs, the requests that are sent, and what a right answer is."""

import json
import random
from dataclasses import dataclass, field

import tokens

# What a proxy does with a request besides passing it on.
FORWARD, TOKEN_LIMIT, EVERYTHING = "forward", "token-limit", "everything"
# Which APIs are called: all in turn, one of them, or all in an order that nobody can foresee.
IN_TURN, FIRST, LAST, RANDOM = "in turn", "first", "last", "random"
# Each API has so many endpoints, and requests that tell them apart go to one of these.
ENDPOINTS = 10
# Requests of one user in a minute: one that nobody reaches, and one that is reached at once.
NO_LIMIT, LOW_LIMIT = 1_000_000_000, 5
ORIGIN = "https://shop.example.com"
ORDER = {
    "customer": {"name": "Ada Lovelace", "email": "ada@example.com"},
    "items": [{"id": "book-17", "quantity": 2}, {"id": "pen-4", "quantity": 12}],
    "note": "Please leave it at the door.",
}


@dataclass(frozen=True)
class Request:
    path: str
    method: str = "GET"
    headers: dict = field(default_factory=dict)
    body: str | None = None


def prefix_of(name):
    return f"/api/rest/{name}/v1/"


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    apis: int
    body_bytes: int
    work: str = FORWARD
    order: str = IN_TURN
    # Whether every proxy is told each endpoint, not only each API.
    tells_endpoints: bool = False
    # Whether each call costs a credit.
    charges: bool = False
    # Of the wanted rate.
    rate_share: float = 1.0
    # Proxies that this can't be asked of, and why.
    left_out: dict = field(default_factory=dict)

    def names(self):
        return ["bench"] if self.apis == 1 else [f"api-{number:05}" for number in range(1, self.apis + 1)]

    def routes(self, name):
        """What a proxy that matches prefixes is told of an API: (the clients' prefix, the upstream's)."""
        if not self.tells_endpoints:
            return [(prefix_of(name), "/")]
        below = [f"bytes/{self.body_bytes}/r{number}/" for number in range(ENDPOINTS)]
        return [(prefix_of(name) + path, f"/{path}") for path in below]

    def rate(self, wanted):
        return wanted * self.rate_share

    def requests(self):
        """All that is sent in turn."""
        names = self.names()
        if self.work != FORWARD:
            return [self.request(names[0], user) for user in tokens.USERS]
        if not self.tells_endpoints:
            return [self.request(name) for name in names]
        places = {FIRST: [(names[0], 0)], LAST: [(names[-1], ENDPOINTS - 1)]}.get(self.order)
        if places is None:
            # The same for every proxy and round. Each API once, so that all have been called when a window begins.
            chance = random.Random(1)
            places = [(name, chance.randrange(ENDPOINTS)) for name in chance.sample(names, len(names))]
        return [Request(f"{self.routes(name)[endpoint][0]}{17 + endpoint}") for name, endpoint in places]

    def request(self, name, user=None, token=None):
        """The request to the API of this name, as this user or with another token."""
        path = f"{prefix_of(name)}bytes/{self.body_bytes}"
        if self.tells_endpoints:
            path += "/r0/17"
        token = token or (user and tokens.of(user))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if self.work != EVERYTHING:
            return Request(path, headers=headers)
        headers |= {"Content-Type": "application/json", "Origin": ORIGIN, "X-Shop": "north"}
        return Request(path, "POST", headers, json.dumps(ORDER))


ONLY_ENVOY = dict.fromkeys(
    ("nginx", "haproxy", "envoy-routes"),
    "this tells what everything costs beside passing through, for which Envoy stands",
)
CASES = {
    case.name: case
    for case in (
        Case("1-api-100b", "1 API, 100 B", 1, 100),
        Case("1-api-10k", "1 API, 10 KiB", 1, 10_240),
        Case("1000-apis", "1,000 APIs, 100 B", 1_000, 100),
        Case("10000-apis", "10,000 APIs, 100 B", 10_000, 100),
        *(
            Case(
                f"10000-apis-{order}", f"10,000 APIs x 10 endpoints, 100 B: {words}", 10_000, 100,
                order=order, tells_endpoints=True,
            )
            for order, words in ((FIRST, "the first"), (LAST, "the last"), (RANDOM, "at random"))
        ),
        Case(
            "token-limit", "HS256 token and a limit for each user, in memory, 100 B", 1, 100, work=TOKEN_LIMIT,
            left_out={"nginx": "it verifies no tokens", "envoy-routes": "one API needs no table"},
        ),
        Case(
            "everything-redis", "Everything on but credits, with Redis, beside passing through, POST, 100 B", 1, 100,
            # Clients with bodies, upstream and Redis share a core, which is full at the whole rate.
            work=EVERYTHING, rate_share=0.5, left_out=ONLY_ENVOY,
        ),
        Case(
            "everything-credits", "The same and a credit for each call", 1, 100,
            # The server of MongoDB's wire protocol that there is everywhere takes a few hundred credits a second.
            work=EVERYTHING, charges=True, rate_share=0.05, left_out=ONLY_ENVOY,
        ),
    )
}  # fmt: skip
