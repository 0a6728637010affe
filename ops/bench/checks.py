"""Whether proxies do what a case is about, seen before it is measured: rows of unlike things are worth nothing."""

import json
from dataclasses import replace

import tokens
from cases import EVERYTHING, LOW_LIMIT, ORIGIN, TOKEN_LIMIT
from doorman import CREDITS, PLENTY, Doorman, Platform
from measure import Refusal, ask, running


def check_policies(case, proxy, ports, folder):
    """Starts the proxy with a limit that is reached at once, and tries what it must refuse."""
    if case.work == TOKEN_LIMIT:
        with running(case, proxy, ports, folder, LOW_LIMIT):
            check_tokens(case, proxy, ports)
            check_limit(case, proxy, ports)
    elif case.work == EVERYTHING and isinstance(proxy, Doorman):
        with running(case, proxy, ports, folder, LOW_LIMIT) as started:
            check_tokens(case, proxy, ports)
            check_everything(case, proxy, ports)
            check_limit(case, proxy, ports)
            check_accounts(case, proxy, ports, started)


def demand(case, proxy, what, answer, *statuses):
    if answer.status not in statuses:
        wanted = " or ".join(map(str, statuses))
        raise Refusal(
            f"{proxy.name} answered {what} with status {answer.status} instead of {wanted} ({case.title}): "
            f"{answer.body[:300]!r}"
        )


def check_tokens(case, proxy, ports):
    name = case.names()[0]
    for what, token in tokens.bad(tokens.USERS[1]).items():
        demand(case, proxy, what, ask(ports["proxy"], case.request(name, token=token)), 401)


def check_limit(case, proxy, ports):
    """Each user by itself: what one has used up leaves another's alone."""
    name = case.names()[0]
    for user in tokens.USERS[2:4]:
        for number in range(1, LOW_LIMIT + 1):
            answer = ask(ports["proxy"], case.request(name, user))
            demand(case, proxy, f"call {number} of {LOW_LIMIT} that {user} may send", answer, 200)
        for _ in range(2):
            answer = ask(ports["proxy"], case.request(name, user))
            demand(case, proxy, f"a call beyond the limit of {user}", answer, 429)


def check_everything(case, proxy, ports):
    """Of the gateway: what is refused, and what is done about a call that is let in."""
    name, user = case.names()[0], tokens.USERS[0]
    good = case.request(name, user)
    answer = ask(ports["proxy"], good)
    demand(case, proxy, "a good call", answer, 200)
    body, seen = json.loads(answer.body), answer.headers
    done = {
        "the envelope": body.get("status_code") == 200 and "data" in body.get("response", {}),
        "the header of the response": seen.get("x-served-by") == "doorman",
        "the origin": seen.get("access-control-allow-origin") == ORIGIN,
        "how the tier's limit stands": "x-ratelimit-remaining" in seen,
    }
    for what, is_there in done.items():
        if not is_there:
            raise Refusal(f"{proxy.name} leaves out {what} ({case.title}): {seen} {answer.body[:300]!r}")
    order = json.loads(good.body)
    order["items"][0]["quantity"] = "two"
    demand(case, proxy, "a body that breaks a rule", ask(ports["proxy"], replace(good, body=json.dumps(order))), 400)
    stranger = ask(ports["proxy"], case.request(name, tokens.STRANGER))
    demand(case, proxy, "a user who has not subscribed", stranger, 403)


def check_accounts(case, proxy, ports, started):
    """After the calls above: what was let in was paid for, and Redis holds a counter of every kind."""
    if case.charges:
        left = Platform(ports["proxy"]).credits_left(tokens.USERS[2])
        if left != PLENTY - LOW_LIMIT:
            raise Refusal(f"{proxy.name} took {PLENTY - left} {CREDITS} for {LOW_LIMIT} calls ({case.title})")
    keys = started.stores.keys()
    kinds = ("ratelimit:user:", "ratelimit:{rule:", "rate_limit:", "throttle_limit:", "bandwidth_usage:", "quota:user:")
    for kind in kinds:
        if not any(key.startswith(kind) for key in keys):
            raise Refusal(f"{proxy.name} has no counter {kind}.. in Redis ({case.title}): {sorted(keys)}")
