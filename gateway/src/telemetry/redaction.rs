//! What nobody may read in a log, taken out before any sink sees it (reference: gateway behaviour 21.5).
//!
//! In: the text of a record, piece by piece. Out: the same text with `[REDACTED]` in place of every secret. One pass
//! finds the names and shapes that announce a secret; only a hit is looked at more closely, so a usual line costs one
//! scan. What always holds: the time is linear in the text, redacting twice is redacting once, and where a secret's
//! end can't be told, more is taken out rather than less.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind};

/// What stands in a secret's place.
pub const REDACTED: &str = "[REDACTED]";

/// How the value that follows a name, or the secret that begins somewhere, ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// A header's value: to `;` or the end of the line.
    Header,
    /// Pairs separated by `;`: to the end of the line.
    Cookies,
    /// To the next blank or `&`.
    Word,
    /// The same, if it is as long as tokens are.
    LongWord,
    /// Credentials after the name of a scheme.
    Scheme,
    /// Three parts with dots between.
    Jwt,
    /// The body of a private key.
    Pem,
    /// User and password before an authority.
    UserInfo,
}

/// Names and openings. A `-` stands for `-`, `_`, a blank or nothing; letters count in either case.
const MARKS: &[(&str, Rule)] = &[
    ("authorization", Rule::Header),
    ("api-key", Rule::Header),
    ("api-secret", Rule::Header),
    ("cookie", Rule::Cookies),
    ("access-token", Rule::Word),
    ("refresh-token", Rule::Word),
    ("csrf-token", Rule::Word),
    ("xsrf-token", Rule::Word),
    ("session-id", Rule::Word),
    ("private-key", Rule::Word),
    ("password", Rule::Word),
    ("passwd", Rule::Word),
    ("passphrase", Rule::Word),
    ("secret", Rule::Word),
    ("token", Rule::LongWord),
    ("bearer", Rule::Scheme),
    ("basic", Rule::Scheme),
    // The beginnings of `{"` and of `{` with a blank or a line break after it, in base64.
    ("eyJ", Rule::Jwt),
    ("eyA", Rule::Jwt),
    ("ewo", Rule::Jwt),
    ("ew0", Rule::Jwt),
    ("-----BEGIN ", Rule::Pem),
    ("://", Rule::UserInfo),
];

/// How names end that say where a secret is and hold none: a setting that names a header, fields that name a Secret.
const NO_SECRET: [&str; 3] = ["_field_swap", "SecretRef", "secretRef"];
/// Characters a token has at least (reference).
const TOKEN_LENGTH: usize = 20;
/// How a quote is written inside other notations.
const QUOTES: [&str; 10] = ["\"", "'", "`", "\\u0022", "\\u0027", "%22", "%27", "%5C", "&quot;", "&#34;"];
const COLONS: [&str; 5] = [":", "=", "%3A", "%3D", "\\u003d"];

struct Scanner {
    marks: AhoCorasick,
    rules: Vec<Rule>,
}

static SCANNER: LazyLock<Scanner> = LazyLock::new(|| {
    let (mut texts, mut rules) = (Vec::new(), Vec::new());
    for (mark, rule) in MARKS {
        let is_name = !matches!(rule, Rule::Pem | Rule::UserInfo);
        let between: &[&str] = if is_name && mark.contains('-') { &["-", "_", "", " "] } else { &["-"] };
        for separator in between {
            texts.push(mark.replace('-', separator));
            rules.push(*rule);
        }
    }
    // A table for every state: one look-up for each byte of every record pays for its few kilobytes.
    let build = AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .match_kind(MatchKind::LeftmostLongest)
        .kind(Some(AhoCorasickKind::DFA))
        .build(&texts);
    let marks = build.unwrap_or_else(|error| unreachable!("the marks are few and short: {error}"));
    Scanner { marks, rules }
});

/// Is there nothing that needs a closer look? True for nearly every record.
pub fn is_clean(text: &str) -> bool {
    !SCANNER.marks.is_match(text)
}

/// Does a field of this name hold a secret?
pub fn is_secret_name(name: &str) -> bool {
    let found = SCANNER.marks.find(name).map(|found| SCANNER.rules[found.pattern().as_usize()]);
    found.is_some_and(|rule| matches!(rule, Rule::Header | Rule::Cookies | Rule::Word | Rule::LongWord))
        && !holds_none(name)
}

fn holds_none(name: &str) -> bool {
    NO_SECRET.iter().any(|end| name.ends_with(end))
}

/// The text without its secrets.
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let (mut kept, mut at, mut no_jwt_before) = (0, 0, 0);
    while let Some(found) = SCANNER.marks.find(Input::new(text).range(at..)) {
        at = found.end();
        let rule = SCANNER.rules[found.pattern().as_usize()];
        if rule == Rule::Jwt && found.start() < no_jwt_before {
            continue;
        }
        let secret = match secret(text, rule, found.range()) {
            Ok(secret) => secret,
            Err(looked_at) => {
                no_jwt_before = looked_at.max(no_jwt_before);
                continue;
            }
        };
        if text[secret.clone()].starts_with(REDACTED) {
            at = secret.start + REDACTED.len();
            continue;
        }
        out.push_str(&text[kept..secret.start]);
        out.push_str(REDACTED);
        (kept, at) = (secret.end, secret.end);
    }
    if kept == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[kept..]);
    Cow::Owned(out)
}

/// The secret that a mark announces. `Err`: there is none, and no JWT begins before that place.
fn secret(text: &str, rule: Rule, mark: Range<usize>) -> Result<Range<usize>, usize> {
    match rule {
        Rule::Jwt => jwt(text, mark.start),
        Rule::Scheme => credentials(text, mark.end).ok_or(0),
        Rule::Pem => private_key(text, mark.end).ok_or(0),
        Rule::UserInfo => user_info(text, mark.end).ok_or(0),
        Rule::Header | Rule::Cookies | Rule::Word | Rule::LongWord => {
            let start = value_start(text, mark).ok_or(0_usize)?;
            value(text, rule, start).ok_or(0)
        }
    }
}

/// Steps over one of these texts, in either case.
fn step(text: &str, at: usize, any: &[&str]) -> Option<usize> {
    let rest = &text.as_bytes()[at..];
    let is_next = |one: &&&str| rest.len() >= one.len() && rest[..one.len()].eq_ignore_ascii_case(one.as_bytes());
    any.iter().find(is_next).map(|one| at + one.len())
}

/// Steps over at most so many bytes of a kind.
fn run(text: &str, at: usize, most: usize, is_in: impl Fn(u8) -> bool) -> usize {
    at + text.as_bytes()[at..].iter().take(most).take_while(|byte| is_in(**byte)).count()
}

fn blanks(text: &str, mut at: usize) -> usize {
    at = run(text, at, 8, |byte| matches!(byte, b' ' | b'\t'));
    while let Some(next) = step(text, at, &["%20"]) {
        at = next;
    }
    at
}

/// Is this the end of a path or of a dotted word (`/platform/authorization`, `user.password`), and no name?
fn ends_path(text: &str, start_of_name: usize) -> bool {
    let before = text.as_bytes()[..start_of_name].iter().rev().take(32);
    let mut rest = before.skip_while(|byte| byte.is_ascii_alphanumeric() || matches!(**byte, b'_' | b'-'));
    rest.next().is_some_and(|byte| matches!(*byte, b'/' | b'.'))
}

/// Where the value of this name begins; `None`: nothing is given to it.
fn value_start(text: &str, name: Range<usize>) -> Option<usize> {
    let end_of_name = name.end;
    // The rest of a longer name: `password_hash`, `access_token_cookie`, `secretKey`.
    let mut at = run(text, end_of_name, 32, |byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if holds_none(&text[name.start..at]) {
        return None;
    }
    let end = at;
    at = run(text, at, 16, |byte| byte == b'\\');
    while let Some(next) = step(text, at, &QUOTES).or_else(|| step(text, at, &["]", ")", "\\"])) {
        at = next;
    }
    // `("authorization", "Bearer ...")`: a comma counts after a quote only.
    let is_quoted = at > end;
    at = blanks(text, at);
    let mut separator = step(text, at, &COLONS);
    if separator.is_none() && is_quoted && !ends_path(text, name.start) {
        separator = step(text, at, &[","]);
    }
    at = separator?;
    while let Some(next) = step(text, at, &COLONS).or_else(|| step(text, at, &[">"])) {
        at = next;
    }
    at = blanks(text, at);
    (at < text.len()).then_some(at)
}

/// The value that begins here.
fn value(text: &str, rule: Rule, start: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    // `Some("...")`, `Secret { ... }`, `b"..."`, `[...]`.
    let word = run(text, start, 64, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'));
    let opening = if bytes.get(word) == Some(&b' ') && bytes.get(word + 1) == Some(&b'{') { word + 1 } else { word };
    if let Some(b'(' | b'[' | b'{') = bytes.get(opening)
        && !text[start..].starts_with(REDACTED)
    {
        return Some(start..balanced(text, opening));
    }
    let open = run(text, word, usize::MAX, |byte| byte == b'\\');
    if word - start <= 2
        && let Some(quote @ (b'"' | b'\'' | b'`')) = bytes.get(open)
    {
        let inner = open + 1..closing(text, open + 1, *quote, open - word);
        return (!inner.is_empty() && (rule != Rule::LongWord || inner.len() >= TOKEN_LENGTH)).then_some(inner);
    }
    if word > start && ["null", "none", "true", "false"].iter().any(|one| text[start..word].eq_ignore_ascii_case(one)) {
        return None;
    }
    let end = match rule {
        Rule::Header | Rule::Cookies => end_of_line(text, start, rule == Rule::Header),
        _ => end_of_word(text, start),
    };
    (end > start && (rule != Rule::LongWord || end - start >= TOKEN_LENGTH)).then_some(start..end)
}

/// The end of a line, or of our own column (` | `).
fn end_of_line(text: &str, start: usize, is_one: bool) -> usize {
    let bytes = text.as_bytes();
    let is_end = |at: &usize| match bytes[*at] {
        b'\n' | b'\r' => true,
        b';' => is_one,
        b' ' => bytes[*at..].starts_with(b" | "),
        _ => false,
    };
    (start..bytes.len()).find(is_end).unwrap_or(bytes.len())
}

fn end_of_word(text: &str, start: usize) -> usize {
    let end_after = |at: usize| run(text, at, usize::MAX, |byte| !byte.is_ascii_whitespace() && byte != b'&');
    let end = end_after(start);
    // `token: Bearer abc`: the secret is the second word.
    let is_scheme = ["bearer", "basic", "digest", "token"].iter().any(|one| text[start..end].eq_ignore_ascii_case(one));
    if is_scheme && end < text.len() { end_after(blanks(text, end)) } else { end }
}

/// Where the string ends whose opening quote had so many backslashes before it. Written into another string, quotes
/// and backslashes get one more each time; so a quote closes when the backslashes before it are the opening's own,
/// after pairs that stand for backslashes of the text.
fn closing(text: &str, start: usize, quote: u8, level: usize) -> usize {
    let bytes = text.as_bytes();
    let mut backslashes = 0;
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        match *byte {
            b'\\' => backslashes += 1,
            byte if byte == quote && (backslashes < level || backslashes % (2 * (level + 1)) == level) => {
                return at - backslashes.min(level);
            }
            _ => backslashes = 0,
        }
    }
    bytes.len()
}

/// The end of what is opened here, however deep; the end of the text when it is never closed.
fn balanced(text: &str, open: usize) -> usize {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0_usize, open);
    while at < bytes.len() {
        match bytes[at] {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            b'"' => {
                let level = bytes[open..at].iter().rev().take_while(|byte| **byte == b'\\').count();
                let end = closing(text, at + 1, b'"', level);
                at = run(text, end, usize::MAX, |byte| byte == b'\\');
            }
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

/// What follows `Bearer` or `Basic`, unless it is a word of prose.
fn credentials(text: &str, end_of_scheme: usize) -> Option<Range<usize>> {
    let mut start = blanks(text, end_of_scheme);
    if start == end_of_scheme {
        start = step(text, start, &["+"])?;
    }
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=%".contains(&byte);
    let end = run(text, start, usize::MAX, is_token);
    let found = &text.as_bytes()[start..end];
    let is_prose = found.len() < TOKEN_LENGTH && found.iter().all(|byte| byte.is_ascii_lowercase() || *byte == b'.');
    (found.len() >= 4 && !is_prose).then_some(start..end)
}

/// `Err`: where the first part ended without a second.
fn jwt(text: &str, start: usize) -> Result<Range<usize>, usize> {
    let is_in = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' || byte == b'=';
    let bytes = text.as_bytes();
    if !["eyJ", "eyA", "ewo", "ew0"].iter().any(|one| text[start..].starts_with(one)) {
        return Err(0);
    }
    let first = run(text, start, usize::MAX, is_in);
    if bytes.get(first) != Some(&b'.') {
        return Err(first);
    }
    let second = run(text, first + 1, usize::MAX, is_in);
    if first - start < 8 || second == first + 1 || bytes.get(second) != Some(&b'.') {
        return Err(first);
    }
    // A signature may be missing, and an encrypted token has five parts.
    let mut end = run(text, second + 1, usize::MAX, is_in);
    while bytes.get(end) == Some(&b'.') && run(text, end + 1, 1, is_in) > end + 1 {
        end = run(text, end + 1, usize::MAX, is_in);
    }
    Ok(start..end)
}

fn private_key(text: &str, start: usize) -> Option<Range<usize>> {
    let label = run(text, start, 48, |byte| byte != b'-');
    let end_of_label = run(text, label, 5, |byte| byte == b'-');
    let name = text.as_bytes()[start..label].to_ascii_uppercase();
    if memchr::memmem::find(&name, b"PRIVATE KEY").is_none() || end_of_label == text.len() {
        return None;
    }
    let end = text[end_of_label..].find("-----END").map_or(text.len(), |end| end_of_label + end);
    (end > end_of_label).then_some(end_of_label..end)
}

/// The password of `scheme://user:password@host`, which should have no `/` but may.
fn user_info(text: &str, start: usize) -> Option<Range<usize>> {
    let is_in = |byte: u8| !byte.is_ascii_whitespace() && !matches!(byte, b'"' | b'\'' | b'`' | b'\\');
    let end = run(text, start, 256, is_in);
    let bytes = &text.as_bytes()[start..end];
    let colon = memchr::memchr2(b':', b'/', bytes).filter(|at| bytes[*at] == b':')?;
    let port = run(text, start + colon + 1, 6, |byte| byte.is_ascii_digit()) - start;
    if port >= end - start || bytes[port] == b'/' {
        return None;
    }
    let at = memchr::memrchr(b'@', bytes)?;
    (colon + 1 < at).then_some(start + colon + 1..start + at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let redacted = redact(text);
        assert_eq!(redacted, expected, "of {text}");
        assert_eq!(redact(&redacted), expected, "twice");
    }

    #[test]
    fn the_rules_of_the_reference() {
        check("Authorization: Bearer abc.def; next", "Authorization: [REDACTED]; next");
        check("X-API-Key: k1", "X-API-Key: [REDACTED]");
        check(r#"("proxy-authorization", "x")"#, r#"("proxy-authorization", "[REDACTED]")"#);
        let path = r#"{"path":"/platform/authorization","request_id":"abc"}"#;
        check(path, path);
        let action = r#"{"action":"user.password","target":"amy"}"#;
        check(action, action);
        check("user.password=x y", "user.password=[REDACTED] y");
        check("apikey=k1; x", "apikey=[REDACTED]; x");
        check("api_secret = s", "api_secret = [REDACTED]");
        check("Cookie: a=1; b=2\nHost: x", "Cookie: [REDACTED]\nHost: x");
        check("Set-Cookie: access_token_cookie=abc; Path=/", "Set-Cookie: [REDACTED]");
        check("/x?access_token=abc&page=2", "/x?access_token=[REDACTED]&page=2");
        check("X-CSRF-Token=abc d", "X-CSRF-Token=[REDACTED] d");
        check("sessionId:9", "sessionId:[REDACTED]");
        check("token=0123456789abcdefghij left", "token=[REDACTED] left");
        check("sent Basic dXNlcjpwYXNz to", "sent Basic [REDACTED] to");
        check("got eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0. here", "got [REDACTED] here");
        check(
            "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----[REDACTED]-----END RSA PRIVATE KEY-----",
        );
        check("mongodb://root:pa:ss@db:27017/x is away", "mongodb://root:[REDACTED]@db:27017/x is away");
    }

    #[test]
    fn secrets_are_found_in_every_notation() {
        check(r#"{"password":"a \" b","n":1}"#, r#"{"password":"[REDACTED]","n":1}"#);
        check(r#"{\"password\":\"a \\\" b\",\"n\":1}"#, r#"{\"password\":\"[REDACTED]\",\"n\":1}"#);
        check(r#"{"password":"ends in \\","n":1}"#, r#"{"password":"[REDACTED]","n":1}"#);
        check(r#"{"Authorization": "Bearer x", "a": "b"}"#, r#"{"Authorization": "[REDACTED]", "a": "b"}"#);
        check(r#"[("x-api-key", "k"), ("a", "b")]"#, r#"[("x-api-key", "[REDACTED]"), ("a", "b")]"#);
        check(r#"User { password: Some("x)"), name: "n" }"#, r#"User { password: [REDACTED], name: "n" }"#);
        check(r#"{"set-cookie": ["a=1", "b=2"], "n": 1}"#, r#"{"set-cookie": [REDACTED], "n": 1}"#);
        check("?next=%2Fa%3Fpassword%3Dx%26b", "?next=%2Fa%3Fpassword%3D[REDACTED]");
        check("token: Bearer abc1 next", "token: Bearer [REDACTED] next");
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "Endpoint: GET /api/rest/orders/v1/items/7 | status_code: 200 | Total time: 3ms",
            "Endpoint: POST /platform/authorization | status_code: 200 | Total time: 93ms",
            "token_count=5 of 7",
            "Basic authentication is off, a bearer token is asked for",
            "the key file can't be read: http://user@host/path",
            "api_authorization_field_swap: X-Key",
            "spec.upstream.tls.caSecretRef: no Secret is named `trust`",
            r#"{"clientCertificateSecretRef":{"name":"pair"}}"#,
            "Password was changed",
            r#"{"password":null,"n":1}"#,
            "-----BEGIN CERTIFICATE-----\nMIIabc\n-----END CERTIFICATE-----",
        ] {
            check(text, text);
        }
        assert!(is_clean("Endpoint: GET /api/rest/orders/v1/items/7 | status_code: 200 | Total time: 3ms"));
    }

    #[test]
    fn a_long_hostile_text_takes_linear_time() {
        for text in
            ["eyJ".repeat(300_000), "password".repeat(100_000), "token=x ".repeat(100_000), "a://".repeat(200_000)]
        {
            let started = std::time::Instant::now();
            let _ = redact(&text);
            // If each byte were looked at for each other one it took a quarter of an hour.
            assert!(started.elapsed() < std::time::Duration::from_secs(60), "{:?}", started.elapsed());
        }
    }

    fn cased(name: String, upper: u64) -> String {
        let letter = |(n, c): (usize, char)| if upper >> (n % 64) & 1 == 1 { c.to_ascii_uppercase() } else { c };
        name.chars().enumerate().map(letter).collect()
    }

    proptest! {
        /// A secret that can be recognised again is put under any name in any notation, any number of times quoted.
        #[test]
        fn no_named_secret_survives(
            name in prop::sample::select(MARKS.iter().filter(|(name, _)| is_secret_name(name)).map(|m| m.0).collect::<Vec<_>>()),
            dash in prop::sample::select(vec!["-", "_", "", " "]),
            upper in any::<u64>(),
            tail in "(_[a-z]{1,8})?",
            secret in "QZ[A-Za-z0-9+/=._~-]{20,60}QZ",
            before in "[ -~]{0,40}",
            after in "[ -~]{0,40}",
            shape in 0..12,
            depth in 0..3,
        ) {
            prop_assume!(!holds_none(&tail));
            let name = format!("{}{tail}", cased(name.replace('-', dash), upper));
            let quoted = |text: &str| format!("{text:?}");
            let mut text = match shape {
                0 => format!("{name}: {secret}"),
                1 => format!("{name}={secret}"),
                2 => format!("/path?a=b&{name}={secret}&c=d"),
                3 => serde_json::json!({ &name: &secret, "other": 1 }).to_string(),
                4 => serde_json::to_string_pretty(&serde_json::json!({ "deep": [{ &name: [&secret, &secret] }] })).unwrap(),
                5 => format!("{:?}", [(name.as_str(), secret.as_str())]),
                6 => format!("{:?}", std::collections::BTreeMap::from([(&name, Some(&secret))])),
                7 => format!("{name} => '{secret}'"),
                8 => format!("{name}: Bearer {secret}"),
                9 => format!("GET / HTTP/1.1\r\n{name}: {secret}\r\nHost: x"),
                10 => serde_json::json!({ "body": serde_json::json!({ &name: &secret }).to_string() }).to_string(),
                _ => format!("Headers {{ {name}: Secret {{ inner: {secret:?} }} }}"),
            };
            for _ in 0..depth {
                text = quoted(&text);
            }
            // What stands before must not itself open a string or a value that hides the name.
            let before = before.replace(['Q', '"', '\'', '`', '\\', '=', ':', '/', '-'], "");
            let whole = format!("{before} {text} {}", after.replace('Q', ""));
            let redacted = redact(&whole);
            prop_assert!(!redacted.contains("QZ"), "{redacted}\nof {whole}");
        }

        #[test]
        fn any_text_can_be_redacted_and_again(text in "(password|eyJ|Bearer|cookie|token|://|[:=\"'\\\\(){}\\[\\], a-z.@]|\\PC){0,60}") {
            let once = redact(&text).into_owned();
            let _ = redact(&once);
            prop_assert!(is_clean(&text) <= (once == text));
        }

        #[test]
        fn no_jwt_survives(head in "eyJ[A-Za-z0-9_-]{5,40}", body in "[A-Za-z0-9_-]{4,40}", sign in "[A-Za-z0-9_-]{20,40}", before in "[ -~]{0,20}") {
            let text = format!("{before}{head}.{body}.{sign} after");
            prop_assert!(!redact(&text).contains(&sign), "{text}");
        }
    }
}
