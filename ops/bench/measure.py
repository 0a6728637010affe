"""One window of load on one proxy, and whether its numbers may be believed."""

import http.client
import json
import subprocess
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import stores
from cases import CASES, NO_LIMIT, Request
from processes import Process

PROXY_CORE = 0
LOAD_CORE = 1
START_SECONDS = 300
# The load generator, the upstream and the stores share a core: above this share of it they would be what is measured.
BUSY = 0.85
# A lower rate than this share of the wanted one was not held.
HELD = 0.99
# What Redis is asked a request at the most: about its limits before it, about its bytes after it.
ROUND_TRIPS = 2
# A request under way at either end of a window is counted on one side only.
ROUND_TRIPS_SLACK = 1.01


class Refusal(Exception):
    """Numbers that must not be reported; says why."""


class Disturbed(Refusal):
    """The same, but it may have been a neighbour on this machine: worth another try."""


@dataclass(frozen=True)
class Window:
    """What one proxy did in one round of one case."""

    case: str
    proxy: str
    round: int
    cpu_us_per_request: float
    p50_us: float
    p99_us: float
    rss_bytes: int
    pss_bytes: int
    ready_ms: float
    rate: float
    requests: int
    proxy_share: float
    load_share: float
    # Of the upstream, and of the stores where there are any.
    upstream_share: float
    # Time that the proxy could have run but had to wait for its core, against the time it ran.
    waited_share: float
    tries: int
    # What a request asked of Redis: questions that were sent, and commands that were run for them.
    redis_round_trips: float | None = None
    redis_commands: float | None = None

    def as_dict(self):
        return asdict(self)


@dataclass(frozen=True)
class Running:
    """A proxy that serves."""

    process: Process
    stores: stores.Stores | None
    ready_ms: float


@contextmanager
def running(case, proxy, ports, folder, limit=NO_LIMIT):
    """Starts a proxy with all that it needs for the case, and stops it."""
    folder.mkdir(parents=True)
    proxy.write(folder, case, ports, sorted({case.body_bytes for case in CASES.values()}), limit)
    with proxy.stores(case, LOAD_CORE, folder, ports) as beside:
        command, environment = proxy.command(folder), proxy.environment(case, ports)
        with Process(proxy.name, command, PROXY_CORE, folder / "proxy.log", environment, cwd=folder) as process:
            ready_ms = wait_until_ready(process, proxy, case, ports)
            try:
                proxy.set_up(case, ports, limit)
            except (OSError, RuntimeError) as error:
                raise Refusal(f"{proxy.name} can't be set up ({case.title}): {error}\n{process.log_tail()}") from error
            yield Running(process, beside, ready_ms)


def window(case, proxy, settings, programs, upstream, ports, folder, number):
    """Starts the proxy, warms it up, loads it for the window and stops it."""
    with running(case, proxy, ports, folder) as started:
        process, requests, rate = started.process, case.requests(), case.rate(settings.rate)
        check_routes(proxy, requests, case, ports)
        urls = folder / "urls"
        urls.write_text("".join(line(request, ports["proxy"]) for request in requests))

        def load_for(seconds):
            report = load(programs, urls, requests[0], proxy.answer_bytes(case), settings, rate, seconds, folder)
            judge_answers(proxy, case, report)
            return report

        # Everything is called before the window, however much there is.
        load_for(max(settings.warm_up, 1.2 * len(requests) / rate))

        tries = 0
        while True:
            tries += 1
            before = usage(started, upstream)
            asked_before = started.stores.asked() if started.stores else {}
            report = load_for(settings.seconds)
            asked = stores.between(asked_before, started.stores.asked()) if started.stores else {}
            after = usage(started, upstream)
            rss, pss = process.memory_bytes()
            if process.has_ended():
                raise Refusal(f"{proxy.name} ended under load ({case.title}):\n{process.log_tail()}")
            cpu, upstream_cpu, waited, seconds = (end - start for start, end in zip(before, after, strict=True))
            of_redis = (
                {"round_trips": stores.round_trips(asked), "commands": sum(asked.values())} if started.stores else {}
            )
            seen = Window(
                case=case.name,
                proxy=proxy.name,
                round=number,
                cpu_us_per_request=cpu * 1e6 / report["requests"],
                p50_us=report["latency_us"]["p50"],
                p99_us=report["latency_us"]["p99"],
                rss_bytes=rss,
                pss_bytes=pss,
                ready_ms=started.ready_ms,
                rate=report["achieved_rate"],
                requests=report["requests"],
                proxy_share=cpu / seconds,
                load_share=report["cpu_share"],
                upstream_share=upstream_cpu / seconds,
                waited_share=waited / cpu if cpu else 0.0,
                tries=tries,
                **{f"redis_{what}": count / report["requests"] for what, count in of_redis.items()},
            )
            judge_redis(seen)
            try:
                judge_load(seen, rate, report["saturated"])
                return seen
            except Disturbed:
                if tries > settings.retries:
                    raise


def usage(started, upstream):
    beside = upstream.cpu_seconds() + (started.stores.cpu_seconds() if started.stores else 0.0)
    return started.process.cpu_seconds(), beside, started.process.waited_seconds(), time.monotonic()


def judge_answers(proxy, case, report):
    """No proxy is measured on answers it got wrong."""
    if report["failed"] or not report["requests"]:
        samples = "\n".join(f"  {sample}" for sample in report["samples"])
        raise Refusal(
            f"{proxy.name} answered {report['failed']} of {report['requests']} requests wrongly or not at all "
            f"({case.title}; {report['failures']}):\n{samples}"
        )


def judge_redis(seen):
    """What is promised of Redis holds in every window, or nothing is reported."""
    if seen.redis_round_trips is None:
        return
    where = f"{seen.proxy}, {seen.case}, round {seen.round}"
    if seen.redis_round_trips > ROUND_TRIPS * ROUND_TRIPS_SLACK:
        asked = f"{seen.redis_round_trips:.2f} times a request"
        raise Refusal(f"{where}: Redis was asked {asked}, {ROUND_TRIPS} are promised.")
    if not seen.redis_round_trips:
        raise Refusal(f"{where}: Redis was asked about no limits.")


def judge_load(seen, wanted_rate, is_saturated):
    where = f"{seen.proxy}, {seen.case}, round {seen.round}"
    around_it = seen.load_share + seen.upstream_share
    if around_it > BUSY:
        raise Disturbed(
            f"{where}: the load generator and what else is not measured used {around_it:.0%} of their core "
            f"(above {BUSY:.0%} they are what is measured); lower --rate."
        )
    if seen.rate < wanted_rate * HELD:
        raise Disturbed(
            f"{where}: {seen.rate:.0f} requests a second were held where {wanted_rate:g} were wanted, with the proxy at "
            f"{seen.proxy_share:.0%} of its core (it waited for it {seen.waited_share:.0%} of that time again); "
            "lower --rate or keep the machine quiet."
        )
    if is_saturated:
        raise Disturbed(f"{where}: the load generator was saturated ({seen.load_share:.0%} of a core).")


def line(request, port):
    """As the load generator reads it."""
    words = [f"http://127.0.0.1:{port}{request.path}", *(f"{name}: {value}" for name, value in request.headers.items())]
    return "\t".join(words) + "\n"


def load(programs, urls, request, answer_bytes, settings, rate, seconds, folder):
    command = [
        "taskset", "-c", str(LOAD_CORE), programs["loadgen"], "--json", "--urls-file", urls, "--method", request.method,
        "--rate", rate, "--connections", settings.connections, "--duration", seconds,
        "--expect-status", 200, "--expect-length", answer_bytes,
    ]  # fmt: skip
    if request.body is not None:
        command += ["--body", request.body]
    running = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder)
    try:
        output, errors = running.communicate(timeout=seconds + 60)
    except subprocess.TimeoutExpired as error:
        raise Refusal("the load generator did not end") from error
    finally:
        if running.poll() is None:
            running.kill()
            running.wait()
    if running.returncode not in (0, 1):
        raise Refusal(f"the load generator failed: {errors.decode(errors='replace').strip()}")
    return json.loads(output)


def wait_until_ready(process, proxy, case, ports):
    """Milliseconds from the start to the first right answer; it is that nobody gets in, where tokens are asked for."""
    name = case.names()[0]
    wanted = [(case.request(name), 401 if proxy.asks_for_tokens(case) else 200)]
    if proxy.readiness_path:
        wanted.insert(0, (Request(proxy.readiness_path), 200))
    for request, status in wanted:
        while ask(ports["proxy"], request).status != status:
            if process.has_ended():
                raise Refusal(f"{proxy.name} did not start ({case.title}):\n{process.log_tail()}")
            if time.monotonic() - process.started > START_SECONDS:
                raise Refusal(
                    f"{proxy.name} did not answer {request.path} with {status} within {START_SECONDS} s ({case.title}):\n"
                    f"{process.log_tail()}"
                )
            time.sleep(0.005)
    return (time.monotonic() - process.started) * 1000


def check_routes(proxy, requests, case, ports):
    """First, middle and last request are answered, an API that isn't there isn't: the table is what is measured."""
    length = proxy.answer_bytes(case)
    for request in (requests[0], requests[len(requests) // 2], requests[-1]):
        answer = ask(ports["proxy"], request)
        if (answer.status, len(answer.body)) != (200, length):
            raise Refusal(
                f"{proxy.name} answered {request.path} with status {answer.status} and {len(answer.body)} bytes "
                f"({case.title}): {answer.body[:200]!r}"
            )
    unknown = case.request("api-unknown", token=requests[0].headers.get("Authorization", "").removeprefix("Bearer "))
    status = ask(ports["proxy"], unknown).status
    if not 400 <= status < 500:
        what = f"{unknown.path}, an API it doesn't have, with status {status}"
        raise Refusal(f"{proxy.name} answered {what} ({case.title})")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict
    body: bytes


def ask(port, request):
    """The answer; status 0 when there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(request.method, request.path, request.body, request.headers)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())
    except (OSError, http.client.HTTPException):
        return Answer(0, {}, b"")
    finally:
        connection.close()
