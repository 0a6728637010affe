"""What the benchmark refuses, and that its configurations and tables are what they claim: python3 -m unittest -v"""

import http.server
import json
import os
import sys
import tempfile
import threading
import time
import unittest
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent))

import measure
import proxies
import report
from measure import CASES, Disturbed, Refusal, Window
from processes import Process, stat_of, tree

GOOD = Window(
    case="1-api-100b", proxy="nginx", round=1, cpu_us_per_request=40.0, p50_us=100, p99_us=300, rss_bytes=2 << 20,
    pss_bytes=1 << 20, ready_ms=10, rate=4000.0, requests=40_000, proxy_share=0.16, load_share=0.1, upstream_share=0.1,
    waited_share=0.0, tries=1,
)  # fmt: skip


def is_alive(pid):
    stat = stat_of(pid)
    return stat is not None and stat[0] != "Z"


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
        answers = {"failed": 1, "requests": 10, "failures": {"length": 1}, "samples": ["99 bytes where 100 were expected"]}
        with self.assertRaisesRegex(Refusal, "1 of 10 .*\n.*99 bytes") as refused:
            measure.judge_answers(proxies.ALL["nginx"], CASES["1-api-100b"], answers)
        self.assertNotIsInstance(refused.exception, Disturbed, "wrong answers get no second try")

    def test_no_answers_at_all_are_refused(self):
        with self.assertRaises(Refusal):
            measure.judge_answers(
                proxies.ALL["nginx"], CASES["1-api-100b"], {"failed": 0, "requests": 0, "failures": {}, "samples": []}
            )

    def test_a_proxy_that_answers_for_unknown_apis_is_refused(self):
        class CatchAll(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"x" * 100)

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), CatchAll) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with self.assertRaisesRegex(Refusal, "an API it doesn't have"):
                measure.check_routes(
                    proxies.ALL["nginx"], ["bench"], CASES["1-api-100b"], {"proxy": server.server_address[1]}
                )
            server.shutdown()


class Processes(unittest.TestCase):
    def test_a_tree_is_measured_and_stopped_to_its_last_process(self):
        with tempfile.TemporaryDirectory() as folder:
            core = min(os.sched_getaffinity(0))
            # The parent ends on SIGTERM and leaves its child behind.
            script = "import subprocess, time; subprocess.Popen(['sleep', '60']); t = time.time()\n"
            script += "while time.time() < t + 0.3: pass\n"
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


class Configurations(unittest.TestCase):
    def test_every_proxy_gets_every_api(self):
        names = proxies.api_names(250)
        ports = {"upstream": 7000, "proxy": 7001, "admin": 7002}
        for proxy in proxies.ALL.values():
            with self.subTest(proxy.name), tempfile.TemporaryDirectory() as folder:
                proxy.write(Path(folder), names, ports, [100, 10_240])
                text = "".join(path.read_text() for path in Path(folder).rglob("*") if path.is_file())
                self.assertTrue(all(name in text for name in names))

    def test_manifests_are_one_document_each(self):
        with tempfile.TemporaryDirectory() as folder:
            proxies.ALL["doorman"].write(Path(folder), proxies.api_names(250), {"upstream": 7000}, [100, 10_240])
            files = sorted((Path(folder) / "manifests").iterdir())
            documents = [json.loads(text) for file in files for text in file.read_text().split("\n---\n")]
        self.assertEqual((len(files), len(documents)), (3, 250))
        self.assertEqual(documents[249]["spec"]["name"], "api-00250")
        self.assertEqual(len(documents[0]["spec"]["endpoints"]), 10)
        self.assertIn({"method": "GET", "uri": "/bytes/100"}, documents[0]["spec"]["endpoints"])


class Reports(unittest.TestCase):
    def windows(self):
        for case, more in (("1-api-100b", 0), ("1000-apis", 10)):
            for proxy, cpu in (("nginx", 40.0), ("envoy", 100.0)):
                for number in (1, 2, 3):
                    yield replace(GOOD, case=case, proxy=proxy, round=number, cpu_us_per_request=cpu + more + number)

    def test_tables_have_medians_spread_and_ratio(self):
        rows = report.summarise(list(self.windows()))
        facts = {
            "date": "today", "commit": "c", "command": "run", "cpu": "CPU", "cores": 2, "is_virtual": True,
            "memory_gib": 4.0, "system": "Debian", "kernel": "6", "versions": {"nginx": "1"},
        }  # fmt: skip
        text = report.markdown(facts, Namespace(rate=4000.0, connections=32, rounds=3, seconds=10.0), rows)
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
