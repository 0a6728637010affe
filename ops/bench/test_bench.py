"""What the benchmark refuses, and that its configurations and tables are what they claim: python3 -m unittest -v"""

import base64
import hashlib
import hmac
import http.server
import itertools
import json
import os
import sys
import tempfile
import threading
import time
import unittest
from argparse import Namespace
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent))

import checks
import kinds
import measure
import report
import stores
import tokens
from cases import CASES, EVERYTHING, LOW_LIMIT, ORDER, TOKEN_LIMIT, Request
from measure import Disturbed, Refusal, Window
from processes import Process, stat_of, tree

GOOD = Window(
    case="1-api-100b", proxy="nginx", round=1, cpu_us_per_request=40.0, p50_us=100, p99_us=300, rss_bytes=2 << 20,
    pss_bytes=1 << 20, ready_ms=10, rate=4000.0, requests=40_000, proxy_share=0.16, load_share=0.1, upstream_share=0.1,
    waited_share=0.0, tries=1,
)  # fmt: skip


def is_alive(pid):
    stat = stat_of(pid)
    return stat is not None and stat[0] != "Z"


@contextmanager
def serving(status_of):
    """A server that answers by the headers of each request, with 100 bytes; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status_of(self.headers))
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"x" * 100)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield {"proxy": server.server_address[1]}
        finally:
            server.shutdown()


class Refusals(unittest.TestCase):
    def test_a_good_window_is_believed(self):
        measure.judge_load(GOOD, 4000, is_saturated=False)

    def test_a_rate_that_was_not_held_is_refused(self):
        with self.assertRaisesRegex(Disturbed, "3900 requests a second were held where 4000"):
            measure.judge_load(replace(GOOD, rate=3900.0), 4000, is_saturated=True)

    def test_a_busy_load_core_is_refused(self):
        with self.assertRaisesRegex(Disturbed, "90% of their core"):
            measure.judge_load(replace(GOOD, load_share=0.5, upstream_share=0.4), 4000, is_saturated=False)

    def test_a_saturated_load_generator_is_refused(self):
        with self.assertRaisesRegex(Disturbed, "was saturated"):
            measure.judge_load(GOOD, 4000, is_saturated=True)

    def test_wrong_answers_are_refused_and_shown(self):
        answers = {
            "failed": 1,
            "requests": 10,
            "failures": {"length": 1},
            "samples": ["99 bytes where 100 were expected"],
        }
        with self.assertRaisesRegex(Refusal, "1 of 10 .*\n.*99 bytes") as refused:
            measure.judge_answers(kinds.ALL["nginx"], CASES["1-api-100b"], answers)
        self.assertNotIsInstance(refused.exception, Disturbed, "wrong answers get no second try")

    def test_no_answers_at_all_are_refused(self):
        with self.assertRaises(Refusal):
            measure.judge_answers(
                kinds.ALL["nginx"], CASES["1-api-100b"], {"failed": 0, "requests": 0, "failures": {}, "samples": []}
            )

    def test_a_proxy_that_answers_for_unknown_apis_is_refused(self):
        case = CASES["1-api-100b"]
        with serving(lambda _: 200) as ports, self.assertRaisesRegex(Refusal, "an API it doesn't have"):
            measure.check_routes(kinds.ALL["nginx"], case.requests(), case, ports)

    def test_a_proxy_that_lets_bad_tokens_in_is_refused(self):
        with serving(lambda _: 200) as ports, self.assertRaisesRegex(Refusal, "no token at all with status 200"):
            checks.check_tokens(CASES["token-limit"], kinds.ALL["envoy"], ports)
        good = {f"Bearer {tokens.of(user)}" for user in tokens.USERS}
        with serving(lambda headers: 200 if headers["Authorization"] in good else 401) as ports:
            checks.check_tokens(CASES["token-limit"], kinds.ALL["envoy"], ports)

    def test_a_proxy_that_limits_nobody_or_all_together_is_refused(self):
        with serving(lambda _: 200) as ports, self.assertRaisesRegex(Refusal, "beyond the limit"):
            checks.check_limit(CASES["token-limit"], kinds.ALL["envoy"], ports)
        calls = itertools.count(1)
        together = serving(lambda _: 200 if next(calls) <= LOW_LIMIT else 429)
        with together as ports, self.assertRaisesRegex(Refusal, "that user-03 may send with status 429"):
            checks.check_limit(CASES["token-limit"], kinds.ALL["envoy"], ports)

    def test_more_questions_to_redis_than_promised_are_refused(self):
        asked = replace(GOOD, redis_round_trips=2.0, redis_commands=9.0)
        measure.judge_redis(asked)
        measure.judge_redis(GOOD)
        with self.assertRaisesRegex(Refusal, "asked 2.10 times a request, 2 are promised"):
            measure.judge_redis(replace(asked, redis_round_trips=2.1))
        with self.assertRaisesRegex(Refusal, "about no limits"):
            measure.judge_redis(replace(asked, redis_round_trips=0.0))


class Processes(unittest.TestCase):
    def test_a_tree_is_measured_and_stopped_to_its_last_process(self):
        with tempfile.TemporaryDirectory() as folder:
            core = min(os.sched_getaffinity(0))
            # The parent ends on SIGTERM and leaves its child behind.
            script = "import subprocess, time; subprocess.Popen(['sleep', '60'])\n"
            script += "while time.process_time() < 0.3: pass\n"
            script += "time.sleep(60)"
            with Process("busy", [sys.executable, "-c", script], core, Path(folder) / "log") as process:
                deadline = time.monotonic() + 10
                while process.cpu_seconds() < 0.2 and time.monotonic() < deadline:
                    time.sleep(0.05)
                pids = tree(process.pid)
                self.assertEqual(len(pids), 2)
                self.assertGreaterEqual(process.cpu_seconds(), 0.2)
                rss, pss = process.memory_bytes()
                self.assertGreater(rss, pss)
            self.assertTrue(process.has_ended())
            deadline = time.monotonic() + 5
            while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
                time.sleep(0.01)
            self.assertEqual([pid for pid in pids if is_alive(pid)], [])


PORTS = {"upstream": 7000, "proxy": 7001, "admin": 7002, "redis": 7003, "mongo": 7004}


def written(proxy, case, **more):
    """The text of all files that a proxy's configuration consists of."""
    with tempfile.TemporaryDirectory() as folder:
        proxy.write(Path(folder), case, PORTS, [100, 10_240], **more)
        return {path.name: path.read_text() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


class Cases(unittest.TestCase):
    def test_requests_go_where_the_case_says(self):
        paths = {name: [request.path for request in case.requests()] for name, case in CASES.items()}
        self.assertEqual(paths["1-api-10k"], ["/api/rest/bench/v1/bytes/10240"])
        self.assertEqual(len(set(paths["10000-apis"])), 10_000)
        self.assertEqual(paths["10000-apis-first"], ["/api/rest/api-00001/v1/bytes/100/r0/17"])
        self.assertEqual(paths["10000-apis-last"], ["/api/rest/api-10000/v1/bytes/100/r9/26"])
        at_random = paths["10000-apis-random"]
        self.assertEqual(len({path.split("/")[3] for path in at_random}), 10_000, "each API once")
        self.assertEqual({path.split("/")[7] for path in at_random}, {f"r{number}" for number in range(10)})
        self.assertNotEqual(at_random, sorted(at_random))
        self.assertEqual(at_random, [request.path for request in CASES["10000-apis-random"].requests()])

    def test_users_take_turns_with_tokens_that_the_secret_signed(self):
        for name in ("token-limit", "everything-redis", "everything-credits"):
            requests = CASES[name].requests()
            self.assertEqual(len({request.headers["Authorization"] for request in requests}), len(tokens.USERS))
            message, _, signature = requests[0].headers["Authorization"].removeprefix("Bearer ").rpartition(".")
            digest = hmac.digest(tokens.SECRET.encode(), message.encode(), hashlib.sha256)
            self.assertEqual(base64.urlsafe_b64decode(signature + "="), digest)
            claims = json.loads(base64.urlsafe_b64decode(message.split(".")[1] + "=="))
            self.assertEqual(claims["sub"], tokens.USERS[0])
        self.assertEqual(json.loads(requests[0].body), ORDER)

    def test_a_line_of_the_load_has_the_headers_of_its_request(self):
        request = Request("/a", headers={"X-One": "1", "X-Two": "2"})
        self.assertEqual(measure.line(request, 7001), "http://127.0.0.1:7001/a\tX-One: 1\tX-Two: 2\n")


class Configurations(unittest.TestCase):
    def test_every_proxy_gets_every_api(self):
        case = replace(CASES["1000-apis"], apis=250)
        for proxy in kinds.ALL.values():
            with self.subTest(proxy.name):
                text = "".join(written(proxy, case).values())
                self.assertTrue(all(name in text for name in case.names()))

    def test_every_proxy_gets_every_endpoint_where_a_case_says_so(self):
        case = replace(CASES["10000-apis-random"], apis=3)
        for proxy in kinds.ALL.values():
            text = "".join(written(proxy, case).values())
            for name in case.names():
                for number in range(10):
                    below = "/" if proxy.name == "doorman" else f"/api/rest/{name}/v1/"
                    wanted = f"{below}bytes/100/r{number}/"
                    with self.subTest(proxy.name, endpoint=wanted):
                        self.assertIn(wanted, text)

    def test_manifests_are_one_document_each(self):
        files = written(kinds.ALL["doorman"], replace(CASES["1000-apis"], apis=250))
        documents = [json.loads(text) for file in files.values() for text in file.split("\n---\n")]
        self.assertEqual((len(files), len(documents)), (3, 250))
        self.assertEqual(documents[249]["spec"]["name"], "api-00250")
        self.assertEqual(len(documents[0]["spec"]["endpoints"]), 10)
        self.assertIn({"method": "GET", "uri": "/bytes/100"}, documents[0]["spec"]["endpoints"])

    def test_the_secret_and_the_limit_are_the_same_for_all_who_verify(self):
        case = CASES["token-limit"]
        self.assertEqual(case.work, TOKEN_LIMIT)
        key = base64.urlsafe_b64encode(tokens.SECRET.encode()).rstrip(b"=").decode()
        haproxy = written(kinds.ALL["haproxy"], case, limit=7)["haproxy.cfg"]
        self.assertIn(f'jwt_verify(txn.alg,"{tokens.SECRET}")', haproxy)
        self.assertIn("sc_http_req_rate(0,users) gt 7", haproxy)
        envoy = written(kinds.ALL["envoy"], case, limit=7)["envoy.json"]
        self.assertIn(key, envoy)
        self.assertIn('"max_tokens": 7', envoy)
        self.assertEqual(kinds.ALL["doorman"].environment(case, PORTS)["JWT_SECRET_KEY"], tokens.SECRET)
        for proxy in kinds.ALL.values():
            plain = "".join(written(proxy, CASES["1-api-100b"]).values())
            self.assertFalse("jwt" in plain, f"{proxy.name} verifies where nothing asks for it")

    def test_everything_is_on(self):
        case, doorman = CASES["everything-redis"], kinds.ALL["doorman"]
        self.assertEqual(case.work, EVERYTHING)
        files = written(doorman, case).values()
        spec = json.loads("".join(files).split("\n---\n")[0])["spec"]
        policies = {"access", "headers", "requestTransform", "responseTransform", "envelope", "cors"}
        self.assertLessEqual(policies, spec.keys())
        self.assertNotIn("credits", spec)
        charging = json.loads("".join(written(doorman, CASES["everything-credits"]).values()).split("\n---\n")[0])
        self.assertTrue(charging["spec"]["credits"]["enabled"])
        self.assertIn("validation", spec["endpoints"][0])
        environment = doorman.environment(case, PORTS)
        self.assertEqual((environment["MEM_OR_EXTERNAL"], environment["LOG_LEVEL"]), ("REDIS", "INFO"))


class Stores(unittest.TestCase):
    def test_what_redis_was_asked_is_read_from_its_counters(self):
        lines = [
            "# Commandstats",
            *(f"cmdstat_{call},usec=1" for call in ("get:calls=3", "evalsha:calls=2", "info:calls=9")),
        ]
        info = "\r\n".join(lines)
        self.assertEqual(stores.commands_of(info), {"get": 3, "evalsha": 2})
        calls = stores.between({"get": 1}, {"get": 3, "evalsha": 2, "exec": 2, "multi": 2, "keys": 0})
        self.assertEqual(calls, {"get": 2, "evalsha": 2, "exec": 2, "multi": 2})
        self.assertEqual(stores.round_trips(calls), 4, "a transaction is one question, what a script runs is none")


FACTS = {
    "date": "today", "commit": "c", "command": "run", "cpu": "CPU", "cores": 2, "is_virtual": True, "memory_gib": 4.0,
    "system": "Debian", "kernel": "6", "versions": {"nginx": "1"},
}  # fmt: skip


class Reports(unittest.TestCase):
    def windows(self):
        for case, more in (("1-api-100b", 0), ("1000-apis", 10)):
            for proxy, cpu in (("nginx", 40.0), ("envoy", 100.0)):
                for number in (1, 2, 3):
                    yield replace(GOOD, case=case, proxy=proxy, round=number, cpu_us_per_request=cpu + more + number)

    def settings(self, *names):
        asked_for = [kinds.ALL[name] for name in names]
        return Namespace(rate=4000.0, connections=32, rounds=3, seconds=10.0, proxies=asked_for)

    def test_a_proxy_that_a_case_can_not_be_asked_of_has_dashes_and_a_reason(self):
        windows = [replace(GOOD, case="token-limit", proxy=name) for name in ("doorman", "envoy")]
        text = report.markdown(FACTS, self.settings("doorman", "nginx", "envoy"), report.summarise(windows))
        self.assertIn("| proxy | CPU us a request | x envoy |", text)
        self.assertIn("| nginx | - | - | - | - | - | - | - |", text)
        self.assertIn("No nginx: it verifies no tokens.", text)
        self.assertNotIn("Redis", text)

    def test_what_redis_is_asked_has_columns_where_it_is_asked(self):
        asked = {"redis_round_trips": 2.0, "redis_commands": 12.25}
        windows = [
            replace(GOOD, case="everything-redis", proxy="doorman", **asked),
            replace(GOOD, case="everything-redis", proxy="envoy"),
        ]
        text = report.markdown(FACTS, self.settings("doorman", "envoy"), report.summarise(windows))
        self.assertIn("| Redis round trips a request | Redis commands a request |", text)
        self.assertIn("| 10 | 2.00 | 12.25 |", text)
        self.assertIn("| 10 | - | - |", text)

    def test_tables_have_medians_spread_and_ratio(self):
        rows = report.summarise(list(self.windows()))
        text = report.markdown(FACTS, self.settings("nginx", "envoy"), rows)
        self.assertIn("| nginx | 42.0 (41.0 - 43.0) | 1.00 | 100 | 300 | 2.0 | 1.0 | 10 |", text)
        self.assertIn("| envoy | 102.0 (101.0 - 103.0) | 2.43 |", text)
        self.assertIn("| nginx | x 1.24 | 0.0 |", text)
        self.assertNotIn("not quiet", text)

    def test_the_page_is_changed_between_its_marks_only(self):
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "page.md"
            page.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
            report.update_docs(page, "new")
            self.assertEqual(page.read_text(), f"before\n{report.START}\nnew\n{report.END}\nafter\n")
            page.write_text("no marks")
            with self.assertRaises(ValueError):
                report.update_docs(page, "new")


if __name__ == "__main__":
    unittest.main()
