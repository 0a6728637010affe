//! Request smuggling: what a client can write on an HTTP/1 connection is one request to everybody, or none.
//!
//! Each case goes over a real socket to a gateway before an upstream that reads strictly, by code of its own. In each case
//! the upstream reads exactly the requests that the gateway decided to forward, in their order; what has more than one
//! reading is refused and ends the connection; and the gateway serves the next client.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result, bail, ensure};
use doorman_tests::gateway::{GatewayProcess, PATIENCE, Start};

const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");

/// Every `^` becomes a mark of its own, by which the upstream's requests are told apart.
const GET: &str = "GET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\n";
const POST: &str = "POST /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\n";
const NEXT: &str = "GET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\n\r\n";

/// Fields that belong to one connection, or that an upstream believes: never a client's own.
const NEVER: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "authorization",
    "x-user-email",
    "x-doorman-user",
];

/// What a client sends, and what must come of it.
struct Case {
    bytes: String,
    /// How many requests are forwarded, and answered with 200.
    forwarded: usize,
    /// Bodies of what is forwarded, where it has one.
    bodies: String,
    /// The status of the refusal that ends the connection.
    refused: Option<u16>,
    /// Whether the connection ends although nothing is refused.
    ends: bool,
    /// A further field the upstream must not see.
    never: &'static str,
}

impl Case {
    fn forwarded(forwarded: usize, bytes: impl Into<String>, bodies: &str) -> Self {
        let bodies = bodies.to_owned();
        Self { bytes: bytes.into(), forwarded, bodies, refused: None, ends: false, never: "" }
    }

    fn refused(status: u16, bytes: impl Into<String>) -> Self {
        Self { refused: Some(status), ..Self::forwarded(0, bytes, "") }
    }

    fn ends(self) -> Self {
        Self { ends: true, ..self }
    }

    fn without(self, never: &'static str) -> Self {
        Self { never, ..self }
    }

    /// The same behind other requests on the connection.
    fn behind(&self, others: usize) -> Self {
        Self {
            bytes: NEXT.repeat(others) + &self.bytes,
            forwarded: self.forwarded + others,
            bodies: self.bodies.clone(),
            ..*self
        }
    }

    /// The statuses of all answers.
    fn statuses(&self) -> Vec<u16> {
        let mut statuses = vec![200; self.forwarded];
        statuses.extend(self.refused);
        statuses
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for refused in [lengths(), encodings(), heads(), request_lines(), chunks(), meanings()].into_iter().flatten() {
        let others = cases.len() % 4 + 1;
        cases.push(refused.behind(others));
        cases.push(refused);
    }
    for good in [framed(), not_framing(), expecting(), of_the_connection(), old(), without_use()].into_iter().flatten()
    {
        cases.push(good);
    }
    cases
}

/// Lengths with more than one reading, or none.
fn lengths() -> Vec<Case> {
    let values = [
        "",
        " ",
        "+3",
        "-3",
        "-0",
        "0x3",
        "3a",
        "a",
        "3.0",
        "3e0",
        "3 3",
        "3,3",
        "3, 3",
        "3, 4",
        "3;",
        "3;q=1",
        "\"3\"",
        "'3'",
        "3\x0b",
        "\x0c3",
        "3\0",
        "3\r",
        "18446744073709551616",
        "9223372036854775808",
        "1000000000000000000",
        "99999999999999999999999999999999",
        "0000000000000000003",
        "３",
        "chunked",
    ];
    let single = values.map(|value| format!("Content-Length: {value}"));
    let several = [
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 0\r\nContent-Length: 3",
        "Content-Length: 3\r\nX: y\r\ncontent-length: 0",
        "Content-Length: 3\r\nContent-Length:",
        "Content-Length:\r\nContent-Length: 3",
        "Content-Length : 3",
        "Content-Length\t: 3",
        "Content-Length\0: 3",
        "Content-Length\x0b: 3",
        "Content-Length 3",
        " Content-Length: 3",
        "X: y\r\n Content-Length: 3",
        "X: y\r\n\tContent-Length: 3",
        "Content-Length:\r\n 3",
        "Content-Length: 3\r\n 0",
        "X: y\nContent-Length: 3",
        "X: y\rContent-Length: 3",
        "Content-Length: 3\nX: y",
    ];
    let fields = single.into_iter().chain(several.map(str::to_owned));
    fields.map(|field| Case::refused(400, format!("{POST}{field}\r\n\r\nabc{NEXT}"))).collect()
}

/// Encodings with more than one reading, also beside a length.
fn encodings() -> Vec<Case> {
    let values = [
        "",
        "identity",
        "gzip",
        "deflate",
        "xchunked",
        "x-chunked",
        "chunkedx",
        "chunke",
        "\"chunked\"",
        "'chunked'",
        "chunked;q=1",
        "chunked; a=b",
        "chunked, chunked",
        "chunked,",
        ",chunked",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, identity",
        "identity, chunked",
        "chunked gzip",
        "\x0bchunked",
        "chunked\x0c",
        "\0chunked",
        "chunked\r",
        "chunked\x7f",
        "ch\tunked",
        "0",
    ];
    let single = values.map(|value| format!("Transfer-Encoding: {value}"));
    let several = [
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nX: y\r\ntransfer-encoding: gzip",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Content-Length: 3\r\nX: y\r\nTRANSFER-ENCODING: CHUNKED",
        "transfer-encoding: chunked\r\ncontent-length: 0",
        "Content-Length: 13\r\nTransfer-Encoding: identity",
        "Content-Length: 13\r\nTransfer-Encoding: x",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding\0: chunked",
        "Transfer-Encoding\x0b: chunked",
        "\x0bTransfer-Encoding: chunked",
        " Transfer-Encoding: chunked",
        "\tTransfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunked\r\n , gzip",
        "X: y\nTransfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\nX: y",
        "Transfer-Encoding: chunked\n",
    ];
    let fields = single.into_iter().chain(several.map(str::to_owned));
    fields.map(|field| Case::refused(400, format!("{POST}{field}\r\n\r\n3\r\nabc\r\n0\r\n\r\n{NEXT}"))).collect()
}

/// Lines of a head that are no fields, and heads beyond the bounds.
fn heads() -> Vec<Case> {
    let fields = [
        "no colon",
        ": no name",
        "X Y: a",
        "X\0: a",
        "X\x01: a",
        "X\x7f: a",
        "X(: a",
        "X\u{e4}: a",
        "X: a\0b",
        "X: \x01",
        "X: a\x1bb",
        "X: a\x7f",
        "X: a\rb",
        "X: a\nb",
        "X: a\r\n b",
        "X: a\r\n\tb",
        "X: a\r\n ",
        " X: a",
        "\tX: a",
        "X : a",
        "X\t: a",
        "X: a\r",
        "\rX: a",
        "X: a\n",
        "\0",
        "Host : g",
        "Connection: close\r\n X-Pass",
    ];
    let mut cases: Vec<_> =
        fields.iter().map(|field| Case::refused(400, format!("{GET}{field}\r\n\r\n{NEXT}"))).collect();
    cases.push(Case::refused(431, format!("{GET}{}\r\n{NEXT}", "a: b\r\n".repeat(101))));
    cases.push(Case::refused(431, format!("{GET}X: {}\r\n\r\n{NEXT}", "v".repeat(40_000))));
    cases.push(Case::refused(431, format!("{GET}X: {}\r\n\r\n{NEXT}", "v".repeat(16_390))));
    cases
}

/// First lines that are none.
fn request_lines() -> Vec<Case> {
    let lines = [
        "GET  /api/rest/a/v1/x?^ HTTP/1.1",
        "GET /api/rest/a/v1/x?^  HTTP/1.1",
        "GET /api/rest/a/v1/x?^ HTTP/1.1 ",
        "GET /api/rest/a/v1/x?^ HTTP/1.1 x",
        " GET /api/rest/a/v1/x?^ HTTP/1.1",
        "\tGET /api/rest/a/v1/x?^ HTTP/1.1",
        "GET\t/api/rest/a/v1/x?^ HTTP/1.1",
        "GET /api/rest/a/v1/x?^\tHTTP/1.1",
        "GET\x0b/api/rest/a/v1/x?^ HTTP/1.1",
        "GET /api/rest/a/v1/x?^",
        "GET",
        "/api/rest/a/v1/x?^ HTTP/1.1",
        "GET /api/rest/a/v1/x?^ HTTP",
        "GET /api/rest/a/v1/x?^ HTTP/1",
        "GET /api/rest/a/v1/x?^ HTTP/1.",
        "GET /api/rest/a/v1/x?^ HTTP/1.2",
        "GET /api/rest/a/v1/x?^ HTTP/0.9",
        "GET /api/rest/a/v1/x?^ HTTP/2.0",
        "GET /api/rest/a/v1/x?^ HTTP/11",
        "GET /api/rest/a/v1/x?^ HTTP/1.10",
        "GET /api/rest/a/v1/x?^ http/1.1",
        "GET /api/rest/a/v1/x?^ HTTPS/1.1",
        "GET /api/rest/a/v1/x?^ ICY/1.1",
        "G(T /api/rest/a/v1/x?^ HTTP/1.1",
        "GET: /api/rest/a/v1/x?^ HTTP/1.1",
        "G\0T /api/rest/a/v1/x?^ HTTP/1.1",
        "GET /api/rest/a/v1/x\0?@ HTTP/1.1",
        "GET /api/rest/a/v1/x?^\x01 HTTP/1.1",
        "GET /api/rest/a/v1/x?^ a HTTP/1.1",
        "GET /api/rest/a/v1/x?^\rHTTP/1.1",
        "GET api/rest/a/v1/x?^ HTTP/1.1",
        "GET ?^ HTTP/1.1",
        "GET /api/rest/a/v1/x?^#a HTTP/1.1",
        "GET /api/rest/a/v1/x#?^ HTTP/1.1",
        "PRI * HTTP/2.0",
    ];
    let mut cases: Vec<_> =
        lines.iter().map(|line| Case::refused(400, format!("{line}\r\nHost: g\r\n\r\n{NEXT}"))).collect();
    for bytes in [
        "GET /api/rest/a/v1/x?^ HTTP/1.1\nHost: g\r\n\r\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\n\r\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\n\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.1\nHost: g\n\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.1\rHost: g\r\r",
        "\nGET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\n\r\n",
        "\rGET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\n\r\n",
        "abc\r\n\r\n",
        "\x16\x03\x01\x02\x01\x01\x01\x01\x0a",
    ] {
        cases.push(Case::refused(400, format!("{bytes}{NEXT}")));
    }
    let long = "a".repeat(8_200);
    cases.push(Case::refused(431, format!("GET /api/rest/a/v1/x?^{long} HTTP/1.1\r\nHost: g\r\n\r\n{NEXT}")));
    cases.push(Case::refused(431, format!("{long} /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\n\r\n{NEXT}")));
    cases
}

/// Chunked bodies that are none. Their heads are good, so the upstream may have been called; it never gets a whole body.
fn chunks() -> Vec<Case> {
    let long = "a".repeat(1_100);
    let chunks = [
        "x\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "\t3\r\nabc\r\n0\r\n\r\n",
        "3\t\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "-0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3h\r\nabc\r\n0\r\n\r\n",
        "3.0\r\nabc\r\n0\r\n\r\n",
        "3,3\r\nabc\r\n0\r\n\r\n",
        "3_\r\nabc\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "00000000000000000003\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\rabc\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\r0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "2\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\n\r\n",
        "3\r\nabc\r\n0\r\n\n",
        "3;\0\r\nabc\r\n0\r\n\r\n",
        "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "3 ;a=b\r\nabc\r\n0\r\n\r\n",
        "3;a=\"\n\"\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0;\x7f\r\n\r\n",
        "3\r\nabc\r\n0\r\nA: b\n\r\n",
        "3\r\nabc\r\n0\r\nA: b\rC: d\r\n\r\n",
        "3\r\nabc\r\n0\r\nA: \0\r\n\r\n",
        "3\r\nabc\r\n0\r\nno colon\r\n\r\n",
        "3\r\nabc\r\n0\r\n: no name\r\n\r\n",
        "3\r\nabc\r\n0\r\nA : b\r\n\r\n",
        "3\r\nabc\r\n0\r\n A: b\r\n\r\n",
        "3\r\nabc\r\n0\r\nA: b\r\n c\r\n\r\n",
    ];
    let mut cases: Vec<_> = chunks
        .iter()
        .map(|chunks| Case::refused(400, format!("{POST}Transfer-Encoding: chunked\r\n\r\n{chunks}{NEXT}")))
        .collect();
    for chunks in [format!("3;{long}\r\nabc\r\n0\r\n\r\n"), format!("3\r\nabc\r\n0\r\nA: {}\r\n\r\n", long.repeat(20))]
    {
        cases.push(Case::refused(400, format!("{POST}Transfer-Encoding: chunked\r\n\r\n{chunks}{NEXT}")));
    }
    cases
}

/// Heads that can be read, and mean more than one thing.
fn meanings() -> Vec<Case> {
    let heads = [
        "GET /api/rest/a/v1/x?^ HTTP/1.1\r\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.0\r\nHost:\r\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost:\r\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\nHost: g\r\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\nX: y\r\nhost: other\r\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g, other\r\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g other\r\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: user@g\r\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g/x\r\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g:port\r\n",
        "GET /api/rest/a/v1/x?^ HTTP/1.1\r\nHost: http://g\r\n",
        "GET http://other/api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\n",
        "GET http://g:81/api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\n",
        "GET http://user@g/api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\n",
        "GET http://g/api/rest/a/v1/x?^ HTTP/1.1\r\n",
        "GET http://g,h/api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g,h\r\n",
        "GET http://[g]/api/rest/a/v1/x?^ HTTP/1.1\r\nHost: [g]\r\n",
        "GET ftp://g/api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\n",
        "GET http://g/api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\nHost: g\r\n",
        "GET /api/rest/a/v1/%2e%2e/x?^ HTTP/1.1\r\nHost: g\r\n",
        "GET /api/rest/a/v1/y/../x?^ HTTP/1.1\r\nHost: g\r\n",
        "GET /api/rest/a/v1/x%00?@ HTTP/1.1\r\nHost: g\r\n",
        "GET /api/rest/a/v1/y%2fx?^ HTTP/1.1\r\nHost: g\r\n",
        "GET /api/rest/a/v1\\x?^ HTTP/1.1\r\nHost: g\r\n",
        "POST /api/rest/a/v1/x?^ HTTP/1.0\r\nHost: g\r\nTransfer-Encoding: chunked\r\n",
        "POST /api/rest/a/v1/x?^ HTTP/1.0\r\nHost: g\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n",
    ];
    heads.iter().map(|head| Case::refused(400, format!("{head}\r\n{NEXT}"))).collect()
}

/// Bodies with one reading, in all their forms.
fn framed() -> Vec<Case> {
    let mut cases = vec![
        Case::forwarded(1, NEXT, ""),
        Case::forwarded(1, format!("\r\n\r\n{NEXT}"), ""),
        Case::forwarded(5, NEXT.repeat(5), ""),
        Case::forwarded(2, format!("{POST}Content-Length: 4\r\n\r\na\n\r\n{NEXT}"), "a\n\r\n"),
        Case::forwarded(2, format!("{GET}X: {}\r\n\r\n{NEXT}", "v".repeat(15_000)), ""),
        Case::forwarded(1, "GET http://g/api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\n\r\n", ""),
        Case::forwarded(1, "GET HTTP://G/api/rest/a/v1/x?^ HTTP/1.1\r\nHost: g\r\n\r\n", ""),
        Case::forwarded(1, "GET //api//rest/%61/v1/x/?^ HTTP/1.1\r\nHost: g\r\n\r\n", ""),
        Case::forwarded(2, format!("{POST}Content-Length: 0\r\n\r\n{NEXT}"), ""),
        Case::forwarded(2, format!("{POST}\r\n{NEXT}"), ""),
        Case::forwarded(
            3,
            format!("{POST}Content-Length: 3\r\n\r\nabc{POST}Content-Length: 2\r\n\r\nde{NEXT}"),
            "abcde",
        ),
    ];
    for field in [
        "Content-Length: 3",
        "Content-Length:3",
        "content-LENGTH: 3",
        "Content-Length: 3 ",
        "Content-Length:\t3\t",
        "Content-Length: 003",
        "Content-Length: 000000000000000003",
    ] {
        cases.push(Case::forwarded(2, format!("{POST}{field}\r\n\r\nabc{NEXT}"), "abc"));
    }
    for field in [
        "Transfer-Encoding: chunked",
        "Transfer-Encoding:chunked",
        "transfer-ENCODING: chunked",
        "Transfer-Encoding: CHUNKED",
        "Transfer-Encoding:  chunked ",
        "Transfer-Encoding:\tchunked\t",
    ] {
        cases.push(Case::forwarded(2, format!("{POST}{field}\r\n\r\n3\r\nabc\r\n0\r\n\r\n{NEXT}"), "abc"));
    }
    let inner = "1F\r\nGET /api/rest/a/v1/x HTTP/1.1\r\n\r\n0\r\n\r\n";
    for (chunks, body) in [
        ("0\r\n\r\n", ""),
        ("000\r\n\r\n", ""),
        ("0003\r\nabc\r\n0\r\n\r\n", "abc"),
        ("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "abcde"),
        ("a\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ("A\r\n0\r\n\r\n45678\r\n0\r\n\r\n", "0\r\n\r\n45678"),
        (inner, "GET /api/rest/a/v1/x HTTP/1.1\r\n"),
        ("3;\r\nabc\r\n0\r\n\r\n", "abc"),
        ("3;a\r\nabc\r\n0;b\r\n\r\n", "abc"),
        ("3;a=b;c=\"d e\"\r\nabc\r\n0\r\n\r\n", "abc"),
        ("3;5\r\nabc\r\n0\r\n\r\n", "abc"),
        ("3; a\t=b\r\nabc\r\n0\r\n\r\n", "abc"),
        ("3\r\nabc\r\n0\r\nContent-Length: 50\r\n\r\n", "abc"),
        ("3\r\nabc\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", "abc"),
        ("3\r\nabc\r\n0\r\nHost: other\r\n\r\n", "abc"),
        ("3\r\nabc\r\n0\r\nAuthorization: a\r\nX-User-Email: b\r\n\r\n", "abc"),
        ("3\r\nabc\r\n0\r\nX-Pass: 1\r\n\r\n", "abc"),
    ] {
        let bytes = format!("{POST}Transfer-Encoding: chunked\r\n\r\n{chunks}{NEXT}");
        cases.push(Case::forwarded(2, bytes, body).without("x-pass"));
    }
    cases
}

/// Fields that only look like framing: what follows them is the next request.
fn not_framing() -> Vec<Case> {
    let fields = [
        "Content_Length: 49",
        "Content-Length-X: 49",
        "X-Content-Length: 49",
        "ContentLength: 49",
        "Content.Length: 49",
        "Transfer_Encoding: chunked",
        "Transfer-Encoding-X: chunked",
        "X-Transfer-Encoding: chunked",
        "TransferEncoding: chunked",
        "Transfer.Encoding: chunked",
        "TE: chunked",
        "Content-Encoding: chunked",
        "Trailer: Content-Length",
        "Proxy-Connection: keep-alive",
        "Keep-Alive: timeout=5",
        "X_User_Email: root",
        "X-User-Email: root",
        "X-Doorman-User: root",
        "Authorization: Bearer a",
        "X-Forwarded-Host: other",
        "X-HTTP-Method-Override: DELETE",
    ];
    let case = |field| Case::forwarded(2, format!("{POST}{field}\r\n\r\n{NEXT}"), "").without("transfer_encoding");
    fields.into_iter().map(case).collect()
}

/// Offers and expectations.
fn expecting() -> Vec<Case> {
    let mut cases = Vec::new();
    for value in ["100-continue", "100-Continue", " 100-continue ", "100-continue, 100-continue", "200-ok", ""] {
        let framed = format!("{POST}Expect: {value}\r\nContent-Length: 3\r\n\r\nabc{NEXT}");
        cases.push(Case::forwarded(2, framed, "abc"));
        let chunked = format!("{POST}Expect: {value}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{NEXT}");
        cases.push(Case::forwarded(2, chunked, "abc"));
        cases.push(Case::forwarded(2, format!("{GET}Expect: {value}\r\n\r\n{NEXT}"), ""));
    }
    for offer in ["h2c", "TLS/1.0", "HTTP/2.0, x", "websocket2"] {
        cases.push(Case::forwarded(2, format!("{GET}Upgrade: {offer}\r\nConnection: Upgrade\r\n\r\n{NEXT}"), ""));
    }
    cases.push(Case::forwarded(2, format!("{GET}Upgrade: websocket\r\n\r\n{NEXT}"), ""));
    cases
}

/// Fields that the client declares to be of this connection.
fn of_the_connection() -> Vec<Case> {
    let mut cases = Vec::new();
    for list in
        ["X-Pass", "x-pass", "keep-alive, X-Pass", ",, X-Pass ,", "X-Other,X-Pass", "keep-alive\r\nConnection: X-Pass"]
    {
        cases.push(
            Case::forwarded(2, format!("{GET}Connection: {list}\r\nX-Pass: 1\r\n\r\n{NEXT}"), "").without("x-pass"),
        );
    }
    for list in ["close, X-Pass", "X-Pass, close", "X-Pass\r\nConnection: close"] {
        let case = Case::forwarded(1, format!("{GET}Connection: {list}\r\nX-Pass: 1\r\n\r\n{NEXT}"), "").ends();
        cases.push(case.without("x-pass"));
    }
    for (name, value) in [
        ("x-user-email", "root"),
        ("x-doorman-user", "root"),
        ("authorization", "Bearer a"),
        ("content-type", "text/plain"),
        ("user-agent", "a"),
        ("accept", "text/html"),
        ("cookie", "a=b"),
        ("upgrade", "h2c"),
        ("te", "trailers"),
    ] {
        let head = format!("{GET}Connection: {name}\r\n{name}: {value}\r\n\r\n{NEXT}");
        cases.push(Case::forwarded(2, head, "").without(name));
    }
    for name in ["Content-Length", "Host", "X-Request-ID", "Connection"] {
        let bytes = format!("{POST}Connection: {name}\r\nContent-Length: 3\r\n\r\nabc{NEXT}");
        cases.push(Case::forwarded(2, bytes, "abc"));
    }
    let bytes =
        format!("{POST}Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{NEXT}");
    cases.push(Case::forwarded(2, bytes, "abc"));
    cases
}

/// HTTP/1.0, whose connections end with an answer unless the client asks otherwise.
fn old() -> Vec<Case> {
    let (get, post) = (GET.replace("1.1", "1.0"), POST.replace("1.1", "1.0"));
    vec![
        Case::forwarded(1, format!("{get}\r\n{NEXT}"), "").ends(),
        Case::forwarded(1, format!("{}\r\n{NEXT}", get.replace("Host: g\r\n", "")), "").ends(),
        Case::forwarded(1, format!("{post}Content-Length: 3\r\n\r\nabc{NEXT}"), "abc").ends(),
        Case::forwarded(1, format!("{get}Connection: close\r\n\r\n{NEXT}"), "").ends(),
        Case::forwarded(2, format!("{get}Connection: keep-alive\r\n\r\n{NEXT}"), ""),
        Case::forwarded(2, format!("{post}Connection: Keep-Alive\r\nContent-Length: 3\r\n\r\nabc{NEXT}"), "abc"),
        Case::forwarded(2, format!("{NEXT}{get}\r\n{NEXT}"), "").ends(),
    ]
}

/// Bodies of calls that take none are read and dropped.
fn without_use() -> Vec<Case> {
    let head = GET.replacen("GET", "HEAD", 1);
    vec![
        Case::forwarded(2, format!("{GET}Content-Length: 3\r\n\r\nabc{NEXT}"), ""),
        Case::forwarded(2, format!("{head}Content-Length: 3\r\n\r\nabc{NEXT}"), ""),
        Case::forwarded(2, format!("{GET}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{NEXT}"), ""),
        Case::forwarded(2, format!("{head}\r\n{NEXT}"), ""),
    ]
}

/// A request that the upstream read to its end.
#[derive(Debug, PartialEq)]
struct Seen {
    mark: String,
    names: Vec<String>,
    body: String,
}

/// Accepts what no reader could read otherwise.
fn read_request(stream: &mut impl BufRead, own_host: &str) -> Result<Option<Seen>> {
    let Some(first) = line(stream)? else { return Ok(None) };
    let [method, target, "HTTP/1.1"] = first.split(' ').collect::<Vec<_>>()[..] else { bail!("{first:?}") };
    ensure!(["GET", "HEAD", "POST"].contains(&method), "{first:?}");
    let mark = target.strip_prefix("/x?").with_context(|| first.clone())?.to_owned();
    let (mut names, mut length, mut is_chunked, mut host) = (Vec::new(), None, false, None);
    loop {
        let text = line(stream)?.context("a head without an end")?;
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(": ").with_context(|| text.clone())?;
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        ensure!(!name.is_empty() && name.chars().all(is_token), "{text:?}");
        let name = name.to_ascii_lowercase();
        match &*name {
            "host" => ensure!(host.replace(value.to_owned()).is_none(), "Host twice"),
            "content-length" => ensure!(length.replace(value.parse::<usize>()?).is_none(), "Content-Length twice"),
            "transfer-encoding" => ensure!(!std::mem::replace(&mut is_chunked, true) && value == "chunked", "{text:?}"),
            _ => {}
        }
        names.push(name);
    }
    ensure!(host.as_deref() == Some(own_host), "Host is {host:?}");
    ensure!(length.is_none() || !is_chunked, "length and chunks");
    let mut body = vec![0; length.unwrap_or_default()];
    stream.read_exact(&mut body)?;
    while is_chunked {
        let size = line(stream)?.context("a body without an end")?;
        let mut piece = vec![0; usize::from_str_radix(&size, 16).with_context(|| size.clone())?];
        stream.read_exact(&mut piece)?;
        let end = line(stream)?;
        ensure!(end.as_deref() == Some(""), "after a chunk: {end:?}");
        is_chunked = !piece.is_empty();
        body.append(&mut piece);
    }
    Ok(Some(Seen { mark, names, body: String::from_utf8(body)? }))
}

fn line(stream: &mut impl BufRead) -> Result<Option<String>> {
    let mut bytes = Vec::new();
    if stream.read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    let text = String::from_utf8(bytes)?;
    let text = text.strip_suffix("\r\n").with_context(|| format!("{text:?} does not end in CRLF"))?;
    ensure!(!text.chars().any(char::is_control) && !text.starts_with(' '), "{text:?}");
    Ok(Some(text.to_owned()))
}

/// Tells of each request it has read, and of each that it could not read to its end.
fn upstream() -> Result<(SocketAddr, Receiver<Result<Seen>>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let (tell, told) = channel();
    let serve = |stream: TcpStream, tell: Sender<Result<Seen>>, own_host: String| -> Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            match read_request(&mut reader, &own_host) {
                Ok(None) => return Ok(()),
                Ok(Some(seen)) => tell.send(Ok(seen))?,
                Err(error) => return Ok(tell.send(Err(error))?),
            }
            (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")?;
        }
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tell = tell.clone();
            std::thread::spawn(move || serve(stream, tell, address.to_string()));
        }
    });
    Ok((address, told))
}

/// Sends bytes and reads all answers. A connection that is to end is left open for the gateway to end it.
fn exchange(address: SocketAddr, case: &Case, bytes: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // A gateway that has refused the beginning may have closed by now.
    let _ = stream.write_all(bytes);
    let ends = case.ends || case.refused.is_some();
    let (mut text, mut buffer, mut said_all) = (String::new(), [0; 4096], false);
    loop {
        if !ends && !said_all && statuses(&text).len() >= case.forwarded {
            stream.shutdown(Shutdown::Write)?;
            said_all = true;
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(text),
            Ok(count) => text.push_str(&String::from_utf8_lossy(&buffer[..count])),
            // Bytes it had not read when it closed.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(text),
            Err(error) => return Err(error).context(format!("after {text:?}")),
        }
    }
}

/// The final statuses of what a connection was answered.
fn statuses(text: &str) -> Vec<u16> {
    let after = |found: (usize, &str)| text.get(found.0 + 9..)?.get(..3)?.parse().ok();
    text.match_indices("HTTP/1.").filter_map(after).filter(|status| *status >= 200).collect()
}

/// How many calls the gateway has decided to forward, by its own count.
fn forwarded(gateway: &GatewayProcess) -> Result<usize> {
    let address = gateway.admin_url("");
    let mut stream = TcpStream::connect(address.trim_start_matches("http://"))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let count = text.lines().find_map(|line| line.strip_prefix("doorman_http_requests_total{code=\"200\"} "));
    Ok(count.map(str::parse).transpose()?.unwrap_or_default())
}

/// Puts a mark in place of every `^`: the number of the case and of the request in it.
fn marked(bytes: &str, case: usize) -> String {
    let mut parts = bytes.split('^').enumerate();
    let first = parts.next().map(|(_, part)| part.to_owned()).unwrap_or_default();
    parts.fold(first, |mut text, (number, part)| {
        let _ = write!(text, "{case}.{number}{part}");
        text
    })
}

fn start(upstream: SocketAddr) -> Result<Start> {
    let manifest = format!(
        "apiVersion: doorman.dev/v1alpha1\nkind: DoormanApi\nmetadata: {{name: a}}\nspec:\n  name: a\n  version: v1\n  \
         protocol: REST\n  public: true\n  servers: ['http://{upstream}']\n  endpoints:\n  - {{method: GET, uri: /x}}\n  \
         - {{method: POST, uri: /x}}\n  headers:\n    allowed: [X-Pass, X-User-Email, X-Doorman-User, Authorization, \
         Content-Length, Host, Upgrade, Transfer_Encoding, X]\n"
    );
    Start::new(BINARY)?.manifest("a.yaml", &manifest)
}

/// The protocol is never changed (RFC 6455 4.2.2): the answer is HTTP, and the connection goes on with HTTP.
#[test]
fn a_websocket_handshake_is_refused_or_answered_like_any_other_request() -> Result<()> {
    let fields = "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let (address, told) = upstream()?;
    let gateway = start(address)?.run()?;
    for path in ["/api/rest/a/v1/x", "/platform/authorization", "/api/health", "/ws"] {
        let bytes = format!("GET {path}?^ HTTP/1.1\r\nHost: g\r\n{fields}{NEXT}");
        let text = exchange(gateway.address(), &Case::forwarded(2, "", ""), marked(&bytes, 0).as_bytes())?;
        ensure!(statuses(&text) == [403, 200] && text.contains("GTW015"), "{path}: {text}");
        ensure!(told.recv_timeout(PATIENCE)??.mark == "0.2", "{path}");
    }
    let gateway = start(address)?.with("WEBSOCKETS_ENABLED", "true").run()?;
    let bytes = format!("{GET}{fields}{NEXT}");
    let text = exchange(gateway.address(), &Case::forwarded(2, "", ""), marked(&bytes, 1).as_bytes())?;
    ensure!(statuses(&text) == [200, 200], "{text}");
    let seen = told.recv_timeout(PATIENCE)??;
    ensure!(seen.mark == "1.1" && seen.names.iter().all(|name| !NEVER.contains(&name.as_str())), "{seen:?}");
    Ok(())
}

#[test]
fn each_http1_message_has_one_reading_or_none() -> Result<()> {
    let (address, told) = upstream()?;
    let gateway = start(address)?.run()?;
    let cases = cases();
    assert!(cases.len() >= 200, "{}", cases.len());
    let mut problems = String::new();
    let mut decisions = forwarded(&gateway)?;
    for (number, case) in cases.iter().enumerate() {
        let bytes = marked(&case.bytes, number);
        let outcome = check(&gateway, &told, case, number, &bytes, &mut decisions);
        if let Err(problem) = outcome {
            writeln!(problems, "{number}: {:?}\n    {problem:#}", bytes.chars().take(300).collect::<String>())?;
        }
    }
    ensure!(problems.is_empty(), "of {} cases:\n{problems}", cases.len());
    Ok(())
}

fn check(
    gateway: &GatewayProcess,
    told: &Receiver<Result<Seen>>,
    case: &Case,
    number: usize,
    bytes: &str,
    decisions: &mut usize,
) -> Result<()> {
    let text = exchange(gateway.address(), case, bytes.as_bytes())?;
    let fresh = format!("{number}.fresh");
    let next = exchange(
        gateway.address(),
        &Case::forwarded(1, "", ""),
        format!("GET /api/rest/a/v1/x?{fresh} HTTP/1.1\r\nHost: g\r\n\r\n").as_bytes(),
    )?;
    let before = std::mem::replace(decisions, forwarded(gateway)?);

    // The fresh request is the last that the upstream was sent.
    let (mut marks, mut bodies) = (Vec::new(), String::new());
    let mut broken = Vec::new();
    loop {
        match told.recv_timeout(PATIENCE)? {
            Ok(seen) if seen.mark == fresh => break,
            Ok(seen) => {
                let hidden = seen.names.iter().find(|name| NEVER.contains(&name.as_str()) || **name == case.never);
                ensure!(hidden.is_none(), "the upstream sees {hidden:?}");
                marks.push(seen.mark);
                bodies.push_str(&seen.body);
            }
            Err(error) => broken.push(format!("{error:#}")),
        }
    }
    ensure!(statuses(&text) == case.statuses(), "{:?} are wanted; answers: {text}", case.statuses());
    let wanted: Vec<_> = (1..=case.forwarded).map(|part| format!("{number}.{part}")).collect();
    ensure!(marks == wanted, "the upstream reads {marks:?}");
    ensure!(bodies == case.bodies, "the upstream reads the bodies {bodies:?}");
    // A body that turns out malformed has no end; nothing else is ever unreadable.
    ensure!(broken.is_empty() || case.refused.is_some(), "the upstream can't read: {broken:?}");
    ensure!(
        broken.iter().all(|problem| problem.contains("without an end") || problem.contains("fill whole buffer")),
        "{broken:?}"
    );
    ensure!(*decisions - before == case.forwarded + 1, "{} decisions", *decisions - before);
    ensure!(statuses(&next) == [200], "the next client is answered {next}");
    Ok(())
}
