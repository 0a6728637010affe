"""One window of load on one proxy, and whether its numbers may be believed."""

import http.client
import json
import subprocess
import time
from dataclasses import asdict, dataclass

from processes import Process
from proxies import api_names, prefix_of

PROXY_CORE = 0
LOAD_CORE = 1
START_SECONDS = 120
# The load generator and the upstream share a core: above this share of it they would be what is measured.
BUSY = 0.85
# A lower rate than this share of the wanted one was not held.
HELD = 0.99


class Refusal(Exception):
    """Numbers that must not be reported; says why."""


class Disturbed(Refusal):
    """The same, but it may have been a neighbour on this machine: worth another try."""


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    apis: int
    body_bytes: int


CASES = {
    case.name: case
    for case in (
        Case("1-api-100b", "1 API, 100 B", 1, 100),
        Case("1-api-10k", "1 API, 10 KiB", 1, 10_240),
        Case("1000-apis", "1,000 APIs, 100 B", 1_000, 100),
        Case("10000-apis", "10,000 APIs, 100 B", 10_000, 100),
    )
}


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
    upstream_share: float
    # Time that the proxy could have run but had to wait for its core, against the time it ran.
    waited_share: float
    tries: int

    def as_dict(self):
        return asdict(self)


def window(case, proxy, settings, programs, upstream, ports, folder, number):
    """Starts the proxy, warms it up, loads it for the window and stops it."""
    folder.mkdir(parents=True)
    names = api_names(case.apis)
    proxy.write(folder, names, ports, sorted({case.body_bytes for case in CASES.values()}))
    base = f"http://127.0.0.1:{ports['proxy']}"
    urls = folder / "urls"
    urls.write_text("".join(f"{base}{prefix_of(name)}bytes/{case.body_bytes}\n" for name in names))

    environment = proxy.environment(ports)
    log = folder / "proxy.log"
    with Process(proxy.name, proxy.command(folder), PROXY_CORE, log, environment, cwd=folder) as process:
        ready_ms = wait_until_ready(process, proxy, names[0], case, ports)
        check_routes(proxy, names, case, ports)

        # Every API is called before the window, however many there are.
        warm_up = max(settings.warm_up, 1.2 * case.apis / settings.rate)
        judge_answers(proxy, case, load(programs, urls, case, settings, warm_up, folder))

        tries = 0
        while True:
            tries += 1
            before = (process.cpu_seconds(), upstream.cpu_seconds(), process.waited_seconds(), time.monotonic())
            report = load(programs, urls, case, settings, settings.seconds, folder)
            after = (process.cpu_seconds(), upstream.cpu_seconds(), process.waited_seconds(), time.monotonic())
            rss, pss = process.memory_bytes()
            if process.has_ended():
                raise Refusal(f"{proxy.name} ended under load ({case.title}):\n{process.log_tail()}")
            cpu, upstream_cpu, waited, seconds = (end - start for start, end in zip(before, after, strict=True))
            seen = Window(
                case=case.name,
                proxy=proxy.name,
                round=number,
                cpu_us_per_request=cpu * 1e6 / max(report["requests"], 1),
                p50_us=report["latency_us"]["p50"],
                p99_us=report["latency_us"]["p99"],
                rss_bytes=rss,
                pss_bytes=pss,
                ready_ms=ready_ms,
                rate=report["achieved_rate"],
                requests=report["requests"],
                proxy_share=cpu / seconds,
                load_share=report["cpu_share"],
                upstream_share=upstream_cpu / seconds,
                waited_share=waited / cpu if cpu else 0.0,
                tries=tries,
            )
            judge_answers(proxy, case, report)
            try:
                judge_load(seen, settings.rate, report["saturated"])
                return seen
            except Disturbed:
                if tries > settings.retries:
                    raise


def judge_answers(proxy, case, report):
    """No proxy is measured on answers it got wrong."""
    if report["failed"] or not report["requests"]:
        samples = "\n".join(f"  {sample}" for sample in report["samples"])
        raise Refusal(
            f"{proxy.name} answered {report['failed']} of {report['requests']} requests wrongly or not at all "
            f"({case.title}; {report['failures']}):\n{samples}"
        )


def judge_load(seen, wanted_rate, is_saturated):
    where = f"{seen.proxy}, {seen.case}, round {seen.round}"
    around_it = seen.load_share + seen.upstream_share
    if around_it > BUSY:
        raise Disturbed(
            f"{where}: the load generator and the upstream used {around_it:.0%} of their core "
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


def load(programs, urls, case, settings, seconds, folder):
    command = [
        "taskset", "-c", str(LOAD_CORE), programs["loadgen"], "--json", "--urls-file", urls,
        "--rate", settings.rate, "--connections", settings.connections, "--duration", seconds,
        "--expect-status", 200, "--expect-length", case.body_bytes,
    ]  # fmt: skip
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


def wait_until_ready(process, proxy, name, case, ports):
    """Milliseconds from the start to the first right answer."""
    first_api = f"{prefix_of(name)}bytes/{case.body_bytes}"
    for path in filter(None, (proxy.readiness_path, first_api)):
        while status_of(ports["proxy"], path)[0] != 200:
            if process.has_ended():
                raise Refusal(f"{proxy.name} did not start ({case.title}):\n{process.log_tail()}")
            if time.monotonic() - process.started > START_SECONDS:
                raise Refusal(
                    f"{proxy.name} did not answer {path} with 200 within {START_SECONDS} s ({case.title}):\n"
                    f"{process.log_tail()}"
                )
            time.sleep(0.005)
    return (time.monotonic() - process.started) * 1000


def check_routes(proxy, names, case, ports):
    """First, middle and last API answer, an API that isn't there doesn't: the table is what is measured, not a catch-all."""
    for name in {names[0], names[len(names) // 2], names[-1]}:
        path = f"{prefix_of(name)}bytes/{case.body_bytes}"
        status, length = status_of(ports["proxy"], path)
        if (status, length) != (200, case.body_bytes):
            raise Refusal(f"{proxy.name} answered {path} with status {status} and {length} bytes ({case.title})")
    path = f"{prefix_of('api-unknown')}bytes/{case.body_bytes}"
    status, _ = status_of(ports["proxy"], path)
    if not 400 <= status < 500:
        raise Refusal(f"{proxy.name} answered {path}, an API it doesn't have, with status {status} ({case.title})")


def status_of(port, path):
    """Status and body length; (0, 0) when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, len(response.read())
    except (OSError, http.client.HTTPException):
        return 0, 0
    finally:
        connection.close()
