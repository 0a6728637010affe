//! Request targets: what is decided on is what goes upstream, or nothing does.
//!
//! A reading of targets and hosts of this test's own, from RFC 3986, RFC 9112 and the reference pages, says of generated
//! requests whether they are refused, unknown, or which target goes upstream. The gateway must agree: on many requests
//! where it decides, and on some over real sockets. Every run generates the same.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use doorman_gateway::definitions::Definitions;
use doorman_gateway::protocols::rest::{self, Caller};
use doorman_gateway::request;
use doorman_gateway::snapshot::{Compiler, Entry, Snapshot};
use doorman_gateway::upstream::{PoolOptions, Pools, RequestBody};
use doorman_tests::gateway::{GatewayProcess, PATIENCE, Start};
use fastrand::Rng;
use http::{HeaderValue, Request, Uri};
use serde_json::json;

const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");
const SEED: u64 = 0x00d0_0a3a;
const IN_PROCESS: usize = 100_000;
const OVER_SOCKETS: usize = 3_000;

/// What comes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// 400, or 431 where it is too long.
    Refused,
    /// 404.
    Unknown,
    /// Goes upstream with this target.
    Forwarded(String),
}

/// An API of the test, and the path on its server.
#[derive(Clone, Debug)]
struct Known {
    name: String,
    version: String,
    base: &'static str,
}

/// The endpoints of every API: the client's path and the upstream's.
const ENDPOINTS: [(&str, &str); 6] = [
    ("/", "/"),
    ("/x", "/x"),
    ("/items/{i}", "/items/{i}"),
    ("/items/all", "/every"),
    ("/a/{b}/c/{d}", "/{d}/of/{b}"),
    ("/äbc", "/äbc"),
];

fn known(count: usize) -> Vec<Known> {
    // Names that differ in case only, that look like other parts of a path, or hold everything a name may hold.
    let odd = [
        ("orders", "v1"),
        ("Orders", "v1"),
        ("ORDERS", "v1"),
        ("orders", "V1"),
        ("orders", "v2"),
        ("api", "rest"),
        ("rest", "v1"),
        ("v1", "v1"),
        ("o.r_d-e~rs", "v1"),
        ("x", "x"),
        ("items", "all"),
        ("orders", "1.0"),
    ];
    let odd = odd.map(|(name, version)| (name.to_owned(), version.to_owned()));
    let many = (0..).map(|number| (format!("api{number}"), "v1".to_owned()));
    let all = odd.into_iter().chain(many).take(count).zip(["", "/base", "/base/of%20it"].into_iter().cycle());
    all.map(|((name, version), base)| Known { name, version, base }).collect()
}

fn spec(known: &Known, server: SocketAddr) -> serde_json::Value {
    let endpoint = |(client, upstream): &(&str, &str)| json!({"method": "GET", "uri": upstream, "clientUri": client});
    json!({
        "name": known.name, "version": known.version, "protocol": "REST", "public": true,
        "servers": [format!("http://{server}{}", known.base)],
        "endpoints": ENDPOINTS.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

fn manifest(known: &Known, server: SocketAddr, number: usize) -> serde_json::Value {
    json!({
        "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi", "spec": spec(known, server),
        "metadata": {"name": format!("a{number}"), "uid": number.to_string(), "generation": 1},
    })
}

/// The independent reading.
struct Reading(HashMap<(String, String), &'static str>);

impl Reading {
    fn new(apis: &[Known]) -> Self {
        Self(apis.iter().map(|api| ((api.name.clone(), api.version.clone()), api.base)).collect())
    }

    /// The outcome of a GET in HTTP/1.1 with this target and these values of `Host`.
    fn of(&self, target: &[u8], hosts: &[&str]) -> Outcome {
        self.read(target, hosts).unwrap_or(Outcome::Refused)
    }

    /// `None`: it has no single reading.
    fn read(&self, target: &[u8], hosts: &[&str]) -> Option<Outcome> {
        if target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f || *byte == b'#') {
            return None;
        }
        let target = std::str::from_utf8(target).ok()?;
        let [host] = hosts else { return None };
        is_host(host).then_some(())?;
        let local = if target.starts_with('/') { target } else { after_authority(target, host)? };
        let (path, query) = local.split_once('?').unwrap_or((local, ""));
        // No part of any URI (RFC 3986 2). Others that are none either are sent as they are by browsers.
        let is_foreign = path.contains(['<', '>', '`']) || query.contains(['<', '>', '"']);
        (!is_foreign).then_some(())?;
        let segments: Vec<_> = path.split('/').filter(|raw| !raw.is_empty()).map(segment).collect::<Option<_>>()?;
        let mut parts = segments.iter().map(String::as_str);
        if (parts.next(), parts.next()) != (Some("api"), Some("rest")) {
            return Some(Outcome::Unknown);
        }
        let (Some(name), Some(version)) = (parts.next(), parts.next()) else { return Some(Outcome::Unknown) };
        let Some(base) = self.0.get(&(name.to_owned(), version.to_owned())) else { return Some(Outcome::Unknown) };
        let upstream = match parts.collect::<Vec<_>>()[..] {
            [] => "/".to_owned(),
            ["x"] => "/x".to_owned(),
            ["items", "all"] => "/every".to_owned(),
            ["items", item] => format!("/items/{}", encoded(item)),
            ["a", b, "c", d] => format!("/{}/of/{}", encoded(d), encoded(b)),
            ["äbc"] => "/%C3%A4bc".to_owned(),
            _ => return Some(Outcome::Unknown),
        };
        let mark = if query.is_empty() { "" } else { "?" };
        Some(Outcome::Forwarded(format!("{base}{upstream}{mark}{query}")))
    }
}

/// The rest of a URL for this host (RFC 9112 3.2.2), or nothing when it is for none or another.
fn after_authority<'a>(target: &'a str, host: &str) -> Option<&'a str> {
    let (scheme, rest) = target.split_once("://")?;
    ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)).then_some(())?;
    let (authority, local) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    authority.eq_ignore_ascii_case(host).then_some(local)
}

fn is_host(host: &str) -> bool {
    let is_port = |port: &str| {
        port.is_empty()
            || port.strip_prefix(':').is_some_and(|port| port.len() < 6 && port.bytes().all(|b| b.is_ascii_digit()))
    };
    if let Some((literal, port)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return literal.parse::<Ipv6Addr>().is_ok() && is_port(port);
    }
    let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
    !name.is_empty() && is_port(port) && name.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
}

/// One segment, decoded once.
fn segment(raw: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            (byte != b'\\').then_some(())?;
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
        let decoded = u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?;
        (decoded >= b' ' && decoded != 0x7f && !b"/\\;#".contains(&decoded)).then_some(())?;
        bytes.push(decoded);
    }
    let text = String::from_utf8(bytes).ok()?;
    let is_dots = [".", ".."]
        .iter()
        .any(|dots| text.strip_prefix(dots).is_some_and(|rest| rest.is_empty() || rest.starts_with(';')));
    (!is_dots).then_some(text)
}

fn encoded(segment: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte);
    segment
        .bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Requests that are good, nearly good, or noise.
struct Generator<'a> {
    rng: Rng,
    apis: &'a [Known],
}

const SEPARATORS: [&str; 10] = ["/", "/", "/", "/", "/", "/", "//", "/./", "/../", "\\"];
const SEGMENTS: [&str; 44] = [
    "x",
    "X",
    "items",
    "items",
    "all",
    "All",
    "a",
    "b",
    "c",
    "%61",
    "%2561",
    "%41ll",
    "1",
    "é",
    "%C3%A9",
    "%c3%a4bc",
    "äbc",
    "%ff",
    "%C3",
    ".",
    "..",
    "...",
    "%2e",
    "%2e%2e",
    ".%2E",
    "%252e%252e",
    ".;a",
    "..;a=b",
    "a;b=c",
    "a%3bb",
    "a%2fb",
    "a%5Cb",
    "a\\b",
    "%00",
    "a%00",
    "%7f",
    "%",
    "%4",
    "%zz",
    "a b",
    "%20",
    "\"<>^`{|}",
    "!$&'()*+,=:@~-_",
    "[1]",
];
const QUERIES: [&str; 13] =
    ["", "", "", "?", "?a=b", "?a=%2e%2e/..&c", "??", "?a?b", "?/../x", "?ä=%zz", "?[a]={b}|c^`\\", "?\"", "?a=<b>"];
const HOSTS: [&str; 24] = [
    "g",
    "g",
    "g",
    "g",
    "G.example",
    "g:80",
    "g:",
    "g:0",
    "g:99999",
    "g:123456",
    "127.0.0.1:5001",
    "[::1]",
    "[::1]:80",
    "[::1",
    "[g]",
    "[::1]x",
    "[fe80::1%25a]",
    "a@g",
    "g,h",
    "g/h",
    "",
    ":80",
    "g:a",
    "g h",
];

impl Generator<'_> {
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.rng.usize(..of.len())]
    }

    fn path(&mut self) -> String {
        let mut path = String::new();
        let api = &self.apis[self.rng.usize(..self.apis.len())];
        for part in ["api", "rest", &api.name, &api.version] {
            path.push_str(if self.rng.u8(..) < 245 { "/" } else { self.one(&SEPARATORS) });
            path.push_str(&self.varied(part));
        }
        match self.rng.u8(..6) {
            0 => path.push_str("/items/"),
            1 => path.push_str("/a/%62/c/"),
            _ => {}
        }
        for _ in 0..self.rng.u8(..4) {
            path.push_str(self.one(&SEPARATORS));
            path.push_str(self.one(&SEGMENTS));
        }
        if self.rng.u8(..) < 3 {
            path.push_str(&"/long".repeat(self.rng.usize(..600)));
        }
        path
    }

    /// A part of a path as it is, or nearly.
    fn varied(&mut self, part: &str) -> String {
        match self.rng.u8(..60) {
            0 => part.to_uppercase(),
            1 => part.to_lowercase(),
            2 => format!("%{:02x}{}", part.as_bytes()[0], &part[1..]),
            3 => format!("%{:02X}{}", part.as_bytes()[0], &part[1..]),
            4 => format!("%25{:02x}{}", part.as_bytes()[0], &part[1..]),
            5 => self.one(&SEGMENTS).to_owned(),
            6 => format!("{part};a=b"),
            7 => format!("{part}."),
            8 => format!("{part}%20"),
            _ => part.to_owned(),
        }
    }

    /// A target and the values of `Host`.
    fn request(&mut self) -> (Vec<u8>, Vec<&'static str>) {
        let hosts = match self.rng.u8(..40) {
            0 => vec![],
            1 => vec!["g", "g"],
            2..10 => vec![self.one(&HOSTS)],
            _ => vec!["g"],
        };
        let mut target = self.path() + self.one(&QUERIES);
        if self.rng.u8(..10) == 0 {
            let scheme =
                self.one(&["http://", "http://", "HTTP://", "https://", "ftp://", "http:/", "http:", "://", "//"]);
            let host = if self.rng.bool() { hosts.first().copied().unwrap_or("g") } else { self.one(&HOSTS) };
            let cut = self.one(&["", "", "", "", "?"]);
            target = format!(
                "{scheme}{}{cut}{target}",
                if self.rng.u8(..4) == 0 { host.to_uppercase() } else { host.to_owned() }
            );
        }
        let mut bytes = target.into_bytes();
        // A byte out of place now and then.
        if self.rng.u8(..12) == 0 {
            let at = self.rng.usize(..bytes.len());
            let byte = match self.rng.u8(..3) {
                0 => b"/\\.%;?:@&"[self.rng.usize(..9)],
                1 => self.rng.u8(b'!'..=b'~'),
                _ => self.rng.u8(..),
            };
            if self.rng.bool() { bytes[at] = byte } else { bytes.insert(at, byte) }
        }
        (bytes, hosts)
    }
}

fn compile(apis: &[Known]) -> Result<Snapshot> {
    let server = SocketAddr::from(([127, 0, 0, 1], 1));
    let object = |(number, api): (usize, &Known)| {
        let object = serde_json::from_value(manifest(api, server, number))?;
        Ok(((String::new(), number.to_string()), Arc::new(object)))
    };
    let pools = Pools::new(PoolOptions {
        max_connections: 1,
        max_idle: 1,
        idle_life: Duration::from_secs(1),
        http2: false,
        allow_loopback: true,
    });
    let apis = apis.iter().enumerate().map(object).collect::<Result<_>>()?;
    Ok(Compiler::new(pools).compile(&Definitions { apis, ..Definitions::default() }))
}

/// The gateway's own decision, as its pipeline makes it.
fn decide(snapshot: &Snapshot, target: &[u8], hosts: &[&str]) -> Outcome {
    let mut request = Request::get("/");
    for host in hosts {
        request = request.header("host", *host);
    }
    let Ok(uri) = Uri::from_maybe_shared(Bytes::copy_from_slice(target)) else { return Outcome::Refused };
    let Ok(request) = request.uri(uri).body(()) else { return Outcome::Refused };
    let (parts, ()) = request.into_parts();
    let checked = request::check(parts.version, &parts.uri, &parts.headers);
    let Ok(segments) = checked.and_then(|()| request::segments(parts.uri.path())) else { return Outcome::Refused };
    let plain: Vec<&str> = segments.iter().map(Cow::as_ref).collect();
    let ["api", "rest", name, version, ..] = plain[..] else { return Outcome::Unknown };
    let Some(Entry::Served(api)) = snapshot.find(name, version) else { return Outcome::Unknown };
    let Some(endpoint) = rest::endpoint_method(&parts.method).and_then(|method| api.paths.find(method, &segments[4..]))
    else {
        return Outcome::Unknown;
    };
    let told = Caller { request_id: &HeaderValue::from_static("id"), username: None, key: None, is_trusted: true };
    let Some((server, ())) = api.servers.choose(|_| Some(())) else { return Outcome::Unknown };
    match rest::upstream_request(&parts, api, endpoint, &segments[4..], server, told, RequestBody::Empty) {
        Ok(upstream) => Outcome::Forwarded(upstream.uri().to_string()),
        Err(_) => Outcome::Refused,
    }
}

#[test]
fn what_is_decided_on_is_what_goes_upstream() -> Result<()> {
    for count in [1, 99, 101, 5_000] {
        let apis = known(count);
        let (snapshot, reading) = (compile(&apis)?, Reading::new(&apis));
        assert_eq!((snapshot.served, &*snapshot.rejected), (count, &[][..]));
        let mut generator = Generator { rng: Rng::with_seed(SEED + count as u64), apis: &apis };
        let mut counts = HashMap::new();
        for _ in 0..IN_PROCESS / 4 {
            let (target, hosts) = generator.request();
            // Control characters, spaces and fragments end before this: in the parse of the head.
            if target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f || *byte == b'#') {
                continue;
            }
            let wanted = reading.of(&target, &hosts);
            let decided = decide(&snapshot, &target, &hosts);
            let shown = String::from_utf8_lossy(&target);
            assert_eq!(decided, wanted, "{shown:?} for {hosts:?} of {count} APIs, seed {SEED:#x}");
            *counts.entry(std::mem::discriminant(&wanted)).or_insert(0) += 1;
        }
        // Each outcome is tried.
        assert!(counts.len() == 3 && counts.values().all(|count| *count > 1_000), "{counts:?}");
    }
    Ok(())
}

/// An upstream that answers with the target it was called with.
fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let serve = |stream: TcpStream| -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let mut target = String::new();
        while let Some(line) = lines.next().transpose()? {
            if target.is_empty() {
                line.split(' ').nth(1).unwrap_or_default().clone_into(&mut target);
            } else if line.is_empty() {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len());
                (&stream).write_all(answer.as_bytes())?;
                target.clear();
            }
        }
        Ok(())
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    Ok(address)
}

fn ask(gateway: &GatewayProcess, target: &[u8], hosts: &[&str]) -> Result<Outcome> {
    let mut head = [b"GET ", target, b" HTTP/1.1\r\nConnection: close\r\n"].concat();
    for host in hosts {
        write!(head, "Host: {host}\r\n")?;
    }
    head.extend_from_slice(b"\r\n");
    let mut stream = TcpStream::connect(gateway.address())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&head)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes)?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| text.clone())?;
    match head.get(9..12) {
        Some("200") => Ok(Outcome::Forwarded(body.to_owned())),
        Some("400" | "431") => Ok(Outcome::Refused),
        Some("404") => Ok(Outcome::Unknown),
        _ => anyhow::bail!("{text}"),
    }
}

#[test]
fn over_sockets_it_is_so_too() -> Result<()> {
    let server = echo()?;
    let apis = known(101);
    let manifests: Vec<_> =
        apis.iter().enumerate().map(|(number, api)| manifest(api, server, number).to_string()).collect();
    let gateway = Start::new(BINARY)?.manifest("all.yaml", &manifests.join("\n---\n"))?.run()?;
    let reading = Reading::new(&apis);
    let mut generator = Generator { rng: Rng::with_seed(SEED), apis: &apis };
    for _ in 0..OVER_SOCKETS {
        let (target, hosts) = generator.request();
        let wanted = reading.of(&target, &hosts);
        let decided = ask(&gateway, &target, &hosts)?;
        let shown = String::from_utf8_lossy(&target);
        ensure!(decided == wanted, "{decided:?}, not {wanted:?}: {shown:?} for {hosts:?}, seed {SEED:#x}");
    }
    Ok(())
}
