//! Tokens as attackers and broken clients send them, each through the whole platform router: every one is refused with
//! 401 and the route's own code, and none with anything else.

use std::collections::BTreeSet;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderName, HeaderValue};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};

use super::*;
use crate::{
    crypt::{TokenKey, rsa_pems},
    identity::{Accesses, KeyRing},
    store::now,
};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const RETIRED: &str = "a secret that was good until yesterday";
const HEADER: &str = r#"{"typ":"JWT","alg":"HS256","kid":"hs"}"#;

/// What a request carries.
type Headers = Vec<(HeaderName, HeaderValue)>;

fn b64(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// Header and claims as they stand, signed with this.
fn signed(header: &str, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", b64(header), b64(claims));
    let signature = crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

/// Signed with the secret of the key `hs`: only what it says is wrong.
fn by_us(header: &str, claims: &str) -> String {
    signed(header, claims, &EncodingKey::from_secret(SECRET.as_bytes()), Algorithm::HS256)
}

fn claims() -> Value {
    json!({ "sub": "admin", "role": "admin", "exp": now() + 600, "jti": "the-id", "accesses": { "ui_access": true } })
}

fn with(member: &str, value: &str) -> String {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(member);
    let text = claims.to_string();
    format!("{},\"{member}\":{value}}}", text.strip_suffix('}').unwrap())
}

fn bearing(token: &str) -> Headers {
    vec![(AUTHORIZATION, HeaderValue::from_bytes(format!("Bearer {token}").as_bytes()).unwrap())]
}

/// A platform API with two keys, and the second one's halves.
struct Target {
    fixture: Fixture,
    private: String,
    public: String,
}

impl Target {
    async fn new() -> Self {
        let (private, public) = rsa_pems();
        let keys = json!([
            { "kid": "hs", "secret": SECRET },
            { "kid": "rsa", "algorithm": "RS256", "private_key": private },
        ])
        .to_string();
        let fixture = Fixture::with(&[("JWT_KEYS", &keys), ("JWT_SECRET_KEY", RETIRED)]).await;
        Self { fixture, private, public }
    }

    async fn answer(&self, method: &str, path: &str, headers: &Headers) -> (u16, Value) {
        let mut call = self.fixture.call(method, path);
        for (name, value) in headers {
            call.builder = call.builder.header(name, value);
        }
        let seen = call.send().await;
        (seen.status, seen.json()["error_code"].clone())
    }

    async fn status(&self, headers: &Headers) -> (u16, Value) {
        self.answer("GET", "/platform/authorization/status", headers).await
    }

    async fn refuses(&self, what: &str, headers: &Headers) {
        assert_eq!(self.status(headers).await, (401, json!("AUTH005")), "{what}: {headers:?}");
        let refresh = self.answer("POST", "/platform/authorization/refresh", headers).await;
        assert_eq!(refresh, (401, json!("AUTH003")), "{what}: {headers:?}");
    }

    fn good() -> String {
        by_us(HEADER, &claims().to_string())
    }
}

/// Headers that ask for another algorithm, key or reading.
fn bad_headers(target: &Target, cases: &mut Vec<(String, String)>) {
    let good = claims().to_string();
    for alg in ["none", "None", "nOnE", "NONE"] {
        let header = format!(r#"{{"typ":"JWT","alg":"{alg}","kid":"hs"}}"#);
        cases.push((format!("alg {alg}, unsigned"), format!("{}.{}.", b64(&header), b64(&good))));
        cases.push((format!("alg {alg}, signed"), by_us(&header, &good)));
    }
    for (what, header) in [
        ("no alg", r#"{"typ":"JWT","kid":"hs"}"#),
        ("alg null", r#"{"typ":"JWT","alg":null,"kid":"hs"}"#),
        ("alg empty", r#"{"typ":"JWT","alg":"","kid":"hs"}"#),
        ("alg a number", r#"{"typ":"JWT","alg":256,"kid":"hs"}"#),
        ("alg a list", r#"{"typ":"JWT","alg":["HS256"],"kid":"hs"}"#),
        ("alg in lower case", r#"{"typ":"JWT","alg":"hs256","kid":"hs"}"#),
        ("alg with a space", r#"{"typ":"JWT","alg":"HS256 ","kid":"hs"}"#),
        ("alg ES256", r#"{"typ":"JWT","alg":"ES256","kid":"hs"}"#),
        ("alg EdDSA", r#"{"typ":"JWT","alg":"EdDSA","kid":"hs"}"#),
        ("alg RS256 of a secret", r#"{"typ":"JWT","alg":"RS256","kid":"hs"}"#),
        ("kid of another key", r#"{"typ":"JWT","alg":"HS256","kid":"rsa"}"#),
        ("kid unknown", r#"{"typ":"JWT","alg":"HS256","kid":"other"}"#),
        ("no kid and several keys", r#"{"typ":"JWT","alg":"HS256"}"#),
        ("kid null", r#"{"typ":"JWT","alg":"HS256","kid":null}"#),
        ("kid empty", r#"{"typ":"JWT","alg":"HS256","kid":""}"#),
        ("kid a number", r#"{"typ":"JWT","alg":"HS256","kid":0}"#),
        ("kid a list", r#"{"typ":"JWT","alg":"HS256","kid":["hs"]}"#),
        ("kid an object", r#"{"typ":"JWT","alg":"HS256","kid":{"$ne":null}}"#),
        ("kid a boolean", r#"{"typ":"JWT","alg":"HS256","kid":true}"#),
        ("kid a path", r#"{"typ":"JWT","alg":"HS256","kid":"../../../../etc/doorman/keys/JWT_SECRET_KEY"}"#),
        ("kid SQL", r#"{"typ":"JWT","alg":"HS256","kid":"' UNION SELECT 'secret' --"}"#),
        ("kid a command", r#"{"typ":"JWT","alg":"HS256","kid":"|/usr/bin/id"}"#),
        ("kid in capitals", r#"{"typ":"JWT","alg":"HS256","kid":"HS"}"#),
        ("kid with a space", r#"{"typ":"JWT","alg":"HS256","kid":"hs "}"#),
        ("kid with NUL", r#"{"typ":"JWT","alg":"HS256","kid":"hs\u0000"}"#),
        ("kid in wide letters", r#"{"typ":"JWT","alg":"HS256","kid":"ｈｓ"}"#),
        ("kid half a surrogate", r#"{"typ":"JWT","alg":"HS256","kid":"\ud800"}"#),
        ("jwk", r#"{"typ":"JWT","alg":"HS256","kid":"hs","jwk":{"kty":"oct","k":"AA"}}"#),
        ("jku", r#"{"typ":"JWT","alg":"HS256","kid":"hs","jku":"https://evil.example/jwks"}"#),
        ("x5u", r#"{"typ":"JWT","alg":"HS256","kid":"hs","x5u":"https://evil.example/cert"}"#),
        ("x5c", r#"{"typ":"JWT","alg":"HS256","kid":"hs","x5c":["AA=="]}"#),
        ("crit of a known claim", r#"{"typ":"JWT","alg":"HS256","kid":"hs","crit":["exp"],"exp":1}"#),
        ("crit empty", r#"{"typ":"JWT","alg":"HS256","kid":"hs","crit":[]}"#),
        ("crit b64", r#"{"typ":"JWT","alg":"HS256","kid":"hs","crit":["b64"],"b64":false}"#),
        ("b64 without crit", r#"{"typ":"JWT","alg":"HS256","kid":"hs","b64":false}"#),
        ("compressed", r#"{"typ":"JWT","alg":"HS256","kid":"hs","zip":"DEF"}"#),
        ("nested", r#"{"typ":"JWT","alg":"HS256","kid":"hs","cty":"JWT"}"#),
        ("encrypted", r#"{"typ":"JWT","alg":"HS256","kid":"hs","enc":"A128GCM"}"#),
        ("typ JWE", r#"{"typ":"JWE","alg":"HS256","kid":"hs"}"#),
        ("typ at+jwt", r#"{"typ":"at+jwt","alg":"HS256","kid":"hs"}"#),
        ("typ a number", r#"{"typ":1,"alg":"HS256","kid":"hs"}"#),
        ("typ null", r#"{"typ":null,"alg":"HS256","kid":"hs"}"#),
        ("alg twice", r#"{"typ":"JWT","alg":"none","alg":"HS256","kid":"hs"}"#),
        ("kid twice", r#"{"typ":"JWT","alg":"HS256","kid":"other","kid":"hs"}"#),
        ("kid twice, once escaped", r#"{"typ":"JWT","alg":"HS256","kid":"hs","\u006bid":"hs"}"#),
        ("header a list", r#"[{"typ":"JWT","alg":"HS256","kid":"hs"}]"#),
        ("header a list of values", r#"["JWT","HS256","hs"]"#),
        ("header a text", r#""HS256""#),
        ("header no JSON", "alg=HS256"),
        ("header empty", ""),
        ("header and more", r#"{"typ":"JWT","alg":"HS256","kid":"hs"}{}"#),
        ("header with a comma too many", r#"{"typ":"JWT","alg":"HS256","kid":"hs",}"#),
        ("header with a comment", r#"{"typ":"JWT","alg":"HS256","kid":"hs"/**/}"#),
        ("header with a byte order mark", "\u{feff}{\"typ\":\"JWT\",\"alg\":\"HS256\",\"kid\":\"hs\"}"),
    ] {
        cases.push((what.to_owned(), by_us(header, &good)));
    }
    let deep = format!(r#"{{"alg":{}"HS256"{},"kid":"hs"}}"#, "[".repeat(2_500), "]".repeat(2_500));
    cases.push(("header nested deeply".into(), by_us(&deep, &good)));
    let long = format!(r#"{{"typ":"JWT","alg":"HS256","kid":"{}"}}"#, "k".repeat(5_000));
    cases.push(("kid very long".into(), by_us(&long, &good)));

    let secret = |bytes: &[u8]| EncodingKey::from_secret(bytes);
    let rsa = EncodingKey::from_rsa_pem(target.private.as_bytes()).unwrap();
    let der: String = target.public.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(der).unwrap();
    let confused = r#"{"typ":"JWT","alg":"HS256","kid":"rsa"}"#;
    for (what, header, key, algorithm) in [
        ("the public key as secret", confused, secret(target.public.as_bytes()), Algorithm::HS256),
        ("the public key as secret, trimmed", confused, secret(target.public.trim().as_bytes()), Algorithm::HS256),
        ("the public key's DER as secret", confused, secret(&der), Algorithm::HS256),
        ("the private key as secret", confused, secret(target.private.as_bytes()), Algorithm::HS256),
        ("the kid as secret", HEADER, secret(b"hs"), Algorithm::HS256),
        ("an empty secret", HEADER, secret(b""), Algorithm::HS256),
        ("a file's nothing as secret", r#"{"alg":"HS256","kid":"/dev/null"}"#, secret(b""), Algorithm::HS256),
        ("another secret", HEADER, secret(RETIRED.as_bytes()), Algorithm::HS256),
        ("the retired key", r#"{"alg":"HS256","kid":"legacy-key"}"#, secret(RETIRED.as_bytes()), Algorithm::HS256),
        ("the retired key without kid", r#"{"alg":"HS256"}"#, secret(RETIRED.as_bytes()), Algorithm::HS256),
        ("HS384", r#"{"alg":"HS384","kid":"hs"}"#, secret(SECRET.as_bytes()), Algorithm::HS384),
        ("HS512", r#"{"alg":"HS512","kid":"hs"}"#, secret(SECRET.as_bytes()), Algorithm::HS512),
        ("RS384", r#"{"alg":"RS384","kid":"rsa"}"#, rsa.clone(), Algorithm::RS384),
        ("PS256", r#"{"alg":"PS256","kid":"rsa"}"#, rsa.clone(), Algorithm::PS256),
        ("RS256 with the kid of a secret", r#"{"alg":"RS256","kid":"hs"}"#, rsa.clone(), Algorithm::RS256),
        ("RS256 said, PS256 done", r#"{"alg":"RS256","kid":"rsa"}"#, rsa, Algorithm::PS256),
    ] {
        cases.push((what.to_owned(), signed(header, &good, &key, algorithm)));
    }
    let other = EncodingKey::from_rsa_pem(rsa_pems().0.as_bytes()).unwrap();
    let header = r#"{"typ":"JWT","alg":"RS256","kid":"rsa"}"#;
    cases.push(("another RSA key".into(), signed(header, &good, &other, Algorithm::RS256)));
}

/// Well signed, and wrong in what they claim.
fn bad_claims(cases: &mut Vec<(String, String)>) {
    let values = [
        ("a number", "7"),
        ("a text", "\"7\""),
        ("a list", "[]"),
        ("an object", "{}"),
        ("a boolean", "true"),
        ("null", "null"),
    ];
    for (member, right) in [
        ("sub", "a text"),
        ("role", "a text"),
        ("jti", "a text"),
        ("exp", "a number"),
        ("accesses", "an object"),
        ("nbf", "a number"),
    ] {
        for (what, value) in values.into_iter().filter(|(what, _)| *what != right) {
            cases.push((format!("{member} is {what}"), by_us(HEADER, &with(member, value))));
        }
        if member != "nbf" {
            let mut without = claims();
            without.as_object_mut().unwrap().remove(member);
            cases.push((format!("no {member}"), by_us(HEADER, &without.to_string())));
            let twice = format!("{{\"{member}\":{},{}", claims()[member], &claims().to_string()[1..]);
            cases.push((format!("{member} twice"), by_us(HEADER, &twice)));
        }
    }
    let (now, soon) = (now(), now() + 600);
    for (what, member, value) in [
        ("exp is now", "exp", now.to_string()),
        ("exp was a second ago", "exp", (now - 1).to_string()),
        ("exp is zero", "exp", "0".into()),
        ("exp is minus zero", "exp", "-0".into()),
        ("exp is negative", "exp", "-1".into()),
        ("exp has a fraction", "exp", format!("{soon}.5")),
        ("exp has a fraction of nothing", "exp", format!("{soon}.0")),
        ("exp has an exponent", "exp", "9e12".into()),
        ("exp is infinite", "exp", "1e999".into()),
        ("exp is above 64 bits", "exp", "18446744073709551616".into()),
        ("exp is NaN", "exp", "NaN".into()),
        ("exp is Infinity", "exp", "Infinity".into()),
        ("exp is hexadecimal", "exp", "0xffffffffff".into()),
        ("exp is a quoted number", "exp", format!("\"{soon}\"")),
        ("nbf is to come", "nbf", soon.to_string()),
        ("aud is somebody", "aud", "\"another service\"".into()),
        ("sub is empty", "sub", "\"\"".into()),
        ("sub is nobody", "sub", "\"nobody\"".into()),
        ("sub in capitals", "sub", "\"ADMIN\"".into()),
        ("sub with a space", "sub", "\" admin\"".into()),
        ("sub with NUL", "sub", "\"admin\\u0000\"".into()),
        ("sub in wide letters", "sub", "\"ａｄｍｉｎ\"".into()),
        ("sub with a joiner", "sub", "\"ad\u{200d}min\"".into()),
        ("sub the e-mail address", "sub", "\"admin@doorman.dev\"".into()),
        ("sub an operator", "sub", r#"{"$gt":""}"#.into()),
        ("jti is empty", "jti", "\"\"".into()),
        ("a flag is a text", "accesses", r#"{"manage_users":"true"}"#.into()),
        ("a flag is null", "accesses", r#"{"manage_users":null}"#.into()),
        ("a flag is an object", "accesses", r#"{"manage_users":{}}"#.into()),
        ("accesses nested deeply", "accesses", format!("{}1{}", r#"{"a":"#.repeat(900), "}".repeat(900))),
        ("claims and more", "more", "1}{".into()),
    ] {
        cases.push((what.to_owned(), by_us(HEADER, &with(member, &value))));
    }
    for (what, text) in
        [("claims a list", "[]"), ("claims a text", "\"x\""), ("claims null", "null"), ("claims a number", "1")]
    {
        cases.push((what.to_owned(), by_us(HEADER, text)));
    }
    let listed = json!(["admin", "admin", soon, "the-id", {}]).to_string();
    cases.push(("claims a list of values".into(), by_us(HEADER, &listed)));
    let mut bytes = claims().to_string().into_bytes();
    bytes.splice(2..2, [0xff, 0xfe]);
    let message = format!("{}.{}", b64(HEADER), b64(&bytes));
    let key = TokenKey::from_secret(SECRET).unwrap();
    cases.push(("claims not UTF-8".into(), format!("{message}.{}", key.sign(message.as_bytes()).unwrap())));
}

/// Changes to a token that is good as it was.
fn bad_forms(good: &str, cases: &mut Vec<(String, String)>) {
    let parts: Vec<_> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!("{good}") };
    let other = by_us(HEADER, &with("jti", "\"another\""));
    let (_, others) = other.rsplit_once('.').unwrap();
    let admin_for = b64(with("sub", "\"root\""));
    // 32 bytes leave two bits of the last character unused: other characters decode to the same bytes, read loosely.
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = alphabet.find(&signature[42..]).unwrap();
    let twin = &alphabet[last ^ 1..=last ^ 1];
    let spelled = [signature.replace('-', "+").replace('_', "/"), payload.replace('-', "+").replace('_', "/")];
    for (what, token) in [
        ("dots only", "..".to_owned()),
        ("one dot", ".".to_owned()),
        ("three dots", "...".to_owned()),
        ("no dot", "token".to_owned()),
        ("no header", format!(".{payload}.{signature}")),
        ("no claims", format!("{header}..{signature}")),
        ("no signature", format!("{header}.{payload}.")),
        ("two parts", format!("{header}.{payload}")),
        ("four parts", format!("{good}.{signature}")),
        ("a leading dot", format!(".{good}")),
        ("a trailing dot", format!("{good}.")),
        ("five parts", format!("{header}.{payload}.{payload}.{payload}.{signature}")),
        ("swapped parts", format!("{payload}.{header}.{signature}")),
        ("reversed parts", format!("{signature}.{payload}.{header}")),
        ("another token's signature", format!("{header}.{payload}.{others}")),
        ("other claims, same signature", format!("{header}.{admin_for}.{signature}")),
        ("a padded signature", format!("{good}=")),
        ("a doubly padded signature", format!("{good}==")),
        ("a padded header", format!("{header}=.{payload}.{signature}")),
        ("a signature spelled otherwise", format!("{header}.{payload}.{}{twin}", &signature[..42])),
        ("a longer signature", format!("{good}AAAA")),
        ("a trailing character", format!("{good}A")),
        ("a shorter signature", good[..good.len() - 1].to_owned()),
        ("half a signature", format!("{header}.{payload}.{}", &signature[..20])),
        ("a signature of zeroes", format!("{header}.{payload}.{}", b64([0; 32]))),
        ("a signature in hexadecimal", format!("{header}.{payload}.{}", "ab".repeat(32))),
        ("encoded dots", good.replace('.', "%2E")),
        ("quotes around", format!("'{good}'")),
        ("a null byte, encoded", format!("{good}%00")),
        ("a comma and more", format!("{good},{good}")),
        ("a semicolon and more", format!("{good};a=b")),
        ("JSON serialisation", json!({ "payload": payload, "signature": signature }).to_string()),
        ("in capitals", good.to_uppercase()),
        ("longer than any token", by_us(HEADER, &with("more", &format!("\"{}\"", "x".repeat(10_000))))),
        ("much longer than any token", "a.".repeat(100_000)),
    ] {
        cases.push((what.to_owned(), token));
    }
    for (what, token) in ["signature", "claims"]
        .into_iter()
        .zip([format!("{header}.{payload}.{}", spelled[0]), format!("{header}.{}.{signature}", spelled[1])])
    {
        // A token may hold neither of the two characters; then there is nothing to spell otherwise.
        if token != good {
            cases.push((format!("{what} in the other alphabet"), token));
        }
    }
}

/// A good token, carried in a way that doesn't count.
fn bad_carriage(good: &str) -> Vec<(&'static str, Headers)> {
    let header = |text: &str| (AUTHORIZATION, HeaderValue::from_bytes(text.as_bytes()).unwrap());
    let cookie = |text: &str| (COOKIE, HeaderValue::from_str(text).unwrap());
    let custom = |name: &'static str| (HeaderName::from_static(name), HeaderValue::from_str(good).unwrap());
    let bearer = header(&format!("Bearer {good}"));
    vec![
        ("nothing", vec![]),
        ("two headers", vec![bearer.clone(), bearer.clone()]),
        ("two headers, one bad", vec![bearer.clone(), header("Bearer bad")]),
        ("two headers, the second empty", vec![bearer.clone(), header("")]),
        ("a bad cookie before a good header", vec![cookie("access_token_cookie=bad"), bearer.clone()]),
        ("the first of two cookies", vec![cookie(&format!("access_token_cookie=bad; access_token_cookie={good}"))]),
        ("a cookie of another name", vec![cookie(&format!("Access_Token_Cookie={good}"))]),
        ("a cookie with more", vec![cookie(&format!("access_token_cookie={good}x"))]),
        ("the CSRF cookie", vec![cookie(&format!("csrf_token={good}"))]),
        ("the scheme alone", vec![header("Bearer")]),
        ("the scheme and spaces", vec![header("Bearer   ")]),
        ("the scheme twice", vec![header(&format!("Bearer Bearer {good}"))]),
        ("no space", vec![header(&format!("Bearer{good}"))]),
        ("a colon", vec![header(&format!("Bearer: {good}"))]),
        ("Basic", vec![header(&format!("Basic {good}"))]),
        ("Token", vec![header(&format!("Token {good}"))]),
        ("a space inside", vec![header(&format!("Bearer {}", good.replacen('.', ". ", 1)))]),
        ("a tab inside", vec![header(&format!("Bearer {}", good.replacen('.', ".\t", 1)))]),
        ("a non-breaking space", vec![header(&format!("Bearer\u{a0}{good}"))]),
        ("bytes that are no text", vec![(AUTHORIZATION, HeaderValue::from_bytes(b"Bearer \xff\xfe.a.b").unwrap())]),
        ("quoted", vec![header(&format!("Bearer \"{good}\""))]),
        ("two tokens", vec![header(&format!("Bearer {good} {good}"))]),
        ("x-access-token", vec![custom("x-access-token")]),
        ("x-authorization", vec![custom("x-authorization")]),
        ("proxy-authorization", vec![custom("proxy-authorization")]),
    ]
}

#[tokio::test]
async fn every_hostile_token_is_refused_as_any_other() {
    let target = Target::new().await;
    let good = Target::good();
    let rsa = EncodingKey::from_rsa_pem(target.private.as_bytes()).unwrap();
    let header = r#"{"alg":"RS256","kid":"rsa"}"#;
    for token in [
        good.clone(),
        signed(header, &claims().to_string(), &rsa, Algorithm::RS256),
        by_us(HEADER, &with("nbf", &now().to_string())),
        by_us(HEADER, &with("iat", "1")),
        // Whoever has the key may say more (RFC 7519, 4), however deeply.
        by_us(HEADER, &with("more", &format!("{}{}", "[".repeat(2_500), "]".repeat(2_500)))),
    ] {
        assert_eq!(target.status(&bearing(&token)).await.0, 200, "the others would prove nothing: {token}");
    }

    let mut cases = Vec::new();
    bad_headers(&target, &mut cases);
    bad_claims(&mut cases);
    bad_forms(&good, &mut cases);
    let carried = bad_carriage(&good);
    let names: BTreeSet<_> =
        cases.iter().map(|(what, _)| what.as_str()).chain(carried.iter().map(|(what, _)| *what)).collect();
    assert_eq!(names.len(), cases.len() + carried.len(), "each has a name of its own");
    for (what, token) in &cases {
        target.refuses(what, &bearing(token)).await;
    }
    for (what, headers) in &carried {
        target.refuses(what, headers).await;
    }
    let query = format!("/platform/authorization/status?access_token={good}&token={good}");
    assert_eq!(target.answer("GET", &query, &vec![]).await, (401, json!("AUTH005")), "in the query");
    assert_eq!(target.status(&bearing(&good)).await.0, 200, "and the good one still is");
    println!("{} hostile tokens", cases.len() + carried.len() + 1);
}

#[tokio::test]
async fn a_good_token_is_refused_once_anything_behind_it_is_gone() {
    let target = Target::new().await;
    let identity = &target.fixture.identity;
    let store = identity.store();
    let issue = async || {
        let amy = User::new("amy", "amy@example.com", "user");
        store.save_user(amy.clone()).await.unwrap();
        let headers =
            bearing(&identity.keys().issue((&amy, now()), Accesses::default(), Duration::from_secs(60)).unwrap());
        assert_eq!(target.status(&headers).await.0, 200);
        headers
    };

    let replayed = issue().await;
    assert_eq!(target.answer("POST", "/platform/authorization/invalidate", &replayed).await.0, 200);
    target.refuses("replayed after sign-out", &replayed).await;

    let revoked = issue().await;
    store.set_user_revoked("amy", true).await.unwrap();
    target.refuses("of a revoked user", &revoked).await;
    store.set_user_revoked("amy", false).await.unwrap();

    let disabled = issue().await;
    store.save_user(User { active: false, ..User::new("amy", "amy@example.com", "user") }).await.unwrap();
    target.refuses("of a disabled user", &disabled).await;

    let deleted = issue().await;
    store.delete_user("amy").await.unwrap();
    target.refuses("of a deleted user", &deleted).await;

    let before = issue().await;
    let ring = |kid: &str, secret: &str| {
        let key = Arc::new(TokenKey::from_secret(secret).unwrap());
        KeyRing::of([(kid.to_owned(), key)].into(), Some(kid.to_owned()))
    };
    identity.replace_keys(ring("new", RETIRED));
    target.refuses("of a key that was removed", &before).await;
    identity.replace_keys(ring("hs", RETIRED));
    target.refuses("of a key that was replaced under its name", &before).await;
    identity.replace_keys(ring("hs", SECRET));
    assert_eq!(target.status(&before).await.0, 200, "nothing else was wrong with it");
}
