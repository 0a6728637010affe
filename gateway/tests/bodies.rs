//! Bodies that are checked, changed and wrapped: a real gateway process between real sockets.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use doorman_tests::gateway::{GatewayProcess, Start};
use doorman_tests::raw::{answer_of, fixed};
use doorman_tests::upstream;
use reqwest::{Client, Response};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");
/// What is changed of an answer at the most.
const MAX_CHANGED: usize = 8 << 20;

/// Headers and a body.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a str);

/// A gateway with one public API, `a/v1`, in front of an upstream.
struct Stage {
    gateway: GatewayProcess,
    http: Client,
    _upstream: Option<upstream::Running>,
}

impl Stage {
    /// Before the sample upstream; `validation` is that of `POST`, `PUT`, `DELETE` and `GET` on `/echo`.
    fn set(validation: &Value, more: &Value) -> Result<Self> {
        let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let stage = Self::before(upstream.address(), validation, more)?;
        Ok(Self { _upstream: Some(upstream), ..stage })
    }

    fn before(upstream: SocketAddr, validation: &Value, more: &Value) -> Result<Self> {
        let mut endpoints: Vec<Value> = ["POST", "PUT", "DELETE", "GET"]
            .iter()
            .map(|method| json!({ "method": method, "uri": "/echo", "validation": validation }))
            .collect();
        let paths = ["/bytes/{n}", "/status/{code}", "/stream/{n}", "/headers", "/bytes", "/fixed"];
        endpoints.extend(paths.map(|uri| json!({ "method": "GET", "uri": uri })));
        let mut spec = json!({ "name": "a", "version": "v1", "protocol": "REST", "public": true,
            "servers": [format!("http://{upstream}")], "endpoints": endpoints });
        spec.as_object_mut().into_iter().for_each(|spec| spec.extend(more.as_object().cloned().unwrap_or_default()));
        let manifest = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi", "metadata": { "name": "a" }, "spec": spec });
        let gateway = Start::new(BINARY)?.manifest("a.yaml", &manifest.to_string())?.run()?;
        Ok(Self { gateway, http: Client::new(), _upstream: None })
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<Response> {
        let url = self.gateway.url(&format!("/api/rest/a/v1{path}"));
        let mut request = self.http.request(method.parse()?, url).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(request.send().await?)
    }

    async fn post(&self, kind: &str, body: impl Into<reqwest::Body>) -> Result<(u16, Value)> {
        read(self.send("POST", "/echo", &[("content-type", kind)], body).await?).await
    }

    async fn get(&self, path: &str) -> Result<Response> {
        self.send("GET", path, &[], "").await
    }
}

async fn read(answer: Response) -> Result<(u16, Value)> {
    let status = answer.status().as_u16();
    Ok((status, answer.json().await.unwrap_or_default()))
}

fn user_rules() -> Value {
    json!({ "rules": {
        "user.name": { "required": true, "type": "string", "min": 2 },
        "user.age": { "required": true, "type": "number", "min": 1 },
    } })
}

#[tokio::test]
async fn a_body_that_breaks_a_rule_stays_away_from_the_upstream() -> Result<()> {
    let stage = Stage::set(&user_rules(), &json!({}))?;
    let json = "application/json";
    for (body, message) in [
        (r#"{"user":{"name":"A"}}"#, "Field is required"),
        (r#"{"user":{"name":"A","age":1}}"#, "String length must be at least 2"),
        (r#"{"user":{"name":"Alan","age":true}}"#, "Expected number, got boolean"),
        (r#"{"user":{"name":"Alan","age":0.5}}"#, "Value must be at least 1"),
        ("", "Field is required"),
        ("[]", "Field is required"),
    ] {
        let refused = json!({ "error_code": "GTW011", "error_message": message });
        assert_eq!(stage.post(json, body).await?, (400, refused), "{body}");
    }
    let body = r#"{ "user": {"name":"Alan", "age":33.0}, "more": 12345678901234567890123 }"#;
    let (status, seen) = stage.post(json, body).await?;
    assert_eq!((status, &seen["body"]), (200, &json!(body)), "what passes is not touched");
    assert_eq!(seen["headers"]["content-length"][0], body.len().to_string());

    let chunked = futures::stream::iter([Ok::<_, std::io::Error>(r#"{"user":{"name":"#), Ok(r#""Alan","age":33}}"#)]);
    assert_eq!(stage.post(json, reqwest::Body::wrap_stream(chunked)).await?.0, 200);
    let large = format!(r#"{{"user":{{"name":"{}","age":1}}}}"#, "a".repeat(2 << 20));
    assert_eq!(stage.post(json, large).await?.1["error_code"], "REQ001");
    Ok(())
}

#[tokio::test]
async fn lists_and_formats_are_checked() -> Result<()> {
    let stage = Stage::set(
        &json!({ "rules": {
            "items": { "required": true, "type": "array", "min": 1, "arrayItems": { "required": true, "type": "object", "nestedSchema": {
                "id": { "required": true, "type": "string", "format": "uuid" },
                "quantity": { "required": true, "type": "number", "min": 1 } } } },
            "user.email": { "required": true, "type": "string", "format": "email" },
        } }),
        &json!({}),
    )?;
    let order = |email: &str, id: &str, quantity: i32| {
        json!({ "user": { "email": email }, "items": [{ "id": id, "quantity": quantity }] }).to_string()
    };
    let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    for (body, status) in [
        (order("a@b.de", id, 1), 200),
        (order("a@b", id, 1), 400),
        (order("a@b.de", "7", 1), 400),
        (order("a@b.de", id, 0), 400),
        (json!({ "user": { "email": "a@b.de" }, "items": [] }).to_string(), 400),
    ] {
        assert_eq!(stage.post("application/json", body.clone()).await?.0, status, "{body}");
    }
    Ok(())
}

#[tokio::test]
async fn no_form_of_a_body_is_a_way_around_the_rules() -> Result<()> {
    let stage = Stage::set(&user_rules(), &json!({ "headers": { "allowed": ["content-encoding"] } }))?;
    let good = r#"{"user":{"name":"Alan","age":33}}"#;
    // A form to some, with other values.
    let form = r#"{"user":{"name":"Alan","age":33},"x":"&user.name=A&user.age=0&"}"#;
    for kind in ["application/problem+json", "Application/JSON; charset=UTF-8", "text/json ; charset=us-ascii"] {
        assert_eq!(stage.post(kind, good).await?.0, 200, "{kind}");
    }
    let json = ("content-type", "application/json");
    let xml = ("content-type", "application/xml");
    let tables: [(&str, &[Case<'_>]); 4] = [
        (
            "The body can't be validated: it needs one Content-Type",
            &[
                (&[], good),
                (&[("content-type", "")], good),
                (&[("content-type", "text/plain")], good),
                (&[("content-type", "application/x-www-form-urlencoded; a=json")], "user.name=A"),
                (&[("content-type", "application/x-www-form-urlencoded, application/json")], form),
                (&[("content-type", "application/json, application/x-www-form-urlencoded")], form),
                (&[("content-type", "application/json application/x-www-form-urlencoded")], form),
                (&[("content-type", "application/x-www-form-urlencoded+json")], form),
                (&[("content-type", "multipart/form-data+json; boundary=x")], form),
                (&[("content-type", "application/json; boundary=x")], form),
                (&[("content-type", "application/json; x=\"multipart/form-data; boundary=y\"")], form),
                (&[("content-type", "application/json; charset")], good),
                (&[("content-type", "application/x-ndjson")], good),
                (&[("content-type", "application/jsonp")], good),
                (&[json, json], good),
                (&[json, ("content-type", "text/plain")], good),
                (&[("content-type", "application/x-www-form-urlencoded"), json], form),
            ],
        ),
        (
            "The body can't be validated: its charset",
            &[
                (&[("content-type", "application/json; charset=utf-7")], good),
                (&[("content-type", "application/json; charset=utf-16")], good),
                (&[("content-type", "application/json; charset=iso-8859-1")], good),
                (&[("content-type", "text/xml; charset=utf-8; charset=utf-16")], good),
            ],
        ),
        (
            "The body can't be validated: ",
            &[
                (&[json, ("content-encoding", "gzip")], good),
                (&[json, ("content-encoding", "identity, deflate")], good),
                (&[json, ("connection", "content-type")], form),
                (&[json, ("connection", "x"), ("connection", "close, Content-Type")], form),
                (&[("content-type", "application/json; charset=us-ascii")], r#"{"user":{"name":"Ålan","age":33}}"#),
            ],
        ),
        (
            "",
            &[
                (&[json], r#"{"user":{"name":"Alan","age":33},"user":{}}"#),
                (&[json], r#"{"user":{"name":"Alan","age":33},"us\u0065r":{}}"#),
                (&[json], r#"{"user":{"name":"Alan","age":33},"User":{"name":"A"}}"#),
                (&[json], r#"{"user":{"name":"Alan","NAME":"A","age":33}}"#),
                (&[json], r#"{"user":{"name":"Alan","age":33},"u\u017fer":{}}"#),
                (&[json], r#"{"user":{"name":"Alan","age":33},"user\u0000":{}}"#),
                (&[json], r#"{"user":{"name":"A\u0000lan","age":33}}"#),
                (&[json], r#"{"user":{"name":"\ud800\ud800","age":33}}"#),
                (&[json], r#"{"user":{"name":"Alan","age":1e400}}"#),
                (&[json], r#"{"user":{"name":"Alan","age":-1e400}}"#),
                (&[json], r#"{"user":{"name":"Alan","age":0.99}}"#),
                (&[json], r#"{"user":{"name":"Alan","age":-99999999999999999999999}}"#),
                (&[json], r#"{"user":{"name":"Alan","age":NaN}}"#),
                (&[json], r#"{"user":{"name":"Alan","age":"33"}}"#),
                (&[json], r#"[{"user":{"name":"Alan","age":33}}]"#),
                (&[json], "{\"user\":{\"name\":\"Alan\",\"age\":33}}\0"),
                (&[json], "\u{feff}{\"user\":{\"name\":\"Alan\",\"age\":33}}"),
                (&[json], "{"),
                (&[json], &"[".repeat(100)),
                (&[xml], good),
                (&[xml], "<user><name>Alan</name><age>33</age></user>"),
            ],
        ),
    ];
    for (told, cases) in tables {
        for (headers, body) in cases {
            for method in ["POST", "PUT", "DELETE"] {
                let (status, refused) = read(stage.send(method, "/echo", headers, (*body).to_owned()).await?).await?;
                let is_told = refused["error_message"].as_str().unwrap_or_default().starts_with(told);
                assert!(
                    status == 400 && refused["error_code"] == "GTW011" && is_told,
                    "{method} {headers:?} {body}: {status} {refused}"
                );
            }
        }
    }
    let encoded: Vec<u8> = good.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(stage.post("application/json", encoded).await?.0, 400, "UTF-16");
    assert_eq!(stage.send("DELETE", "/echo", &[], "").await?.status(), 400, "nothing is a body without fields");
    let (status, seen) = read(stage.send("GET", "/echo", &[json], "{").await?).await?;
    assert_eq!((status, &seen["body"]), (200, &json!("")), "what never goes upstream is not checked");
    Ok(())
}

#[tokio::test]
async fn members_that_no_rule_names_may_be_named_at_will() -> Result<()> {
    let stage = Stage::set(&user_rules(), &json!({}))?;
    let body = r#"{"user":{"name":"Alan","age":33},"other":{"User":1,"user":2,"NAME":"\u0000"},"Id":1,"ID":2}"#;
    assert_eq!(stage.post("application/json", body).await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn what_follows_a_checked_body_stays_away_from_the_upstream() -> Result<()> {
    let stage = Stage::set(&user_rules(), &json!({ "headers": { "allowed": ["x-late", "content-encoding"] } }))?;
    let url = stage.gateway.url("");
    let authority = url.trim_start_matches("http://").trim_end_matches('/');
    let body = r#"{"user":{"name":"Alan","age":33}}"#;
    let request = format!(
        "POST /api/rest/a/v1/echo HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Trailer: x-late, content-encoding\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x}\r\n{body}\r\n0\r\nX-Late: 1\r\nContent-Encoding: gzip\r\nContent-Type: text/plain\r\n\r\n",
        body.len()
    );
    let mut stream = std::net::TcpStream::connect(authority)?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, seen) = answer.split_once("\r\n\r\n").unwrap_or_default();
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    let seen: Value =
        serde_json::from_str(&seen[seen.find('{').unwrap_or_default()..=seen.rfind('}').unwrap_or_default()])?;
    let told = &seen["headers"];
    assert_eq!((&seen["body"], &told["content-type"]), (&json!(body), &json!(["application/json"])));
    assert!(told["x-late"].is_null() && told["content-encoding"].is_null() && told["trailer"].is_null(), "{told}");
    Ok(())
}

#[tokio::test]
async fn messages_of_soap_are_checked_by_their_payload() -> Result<()> {
    let rules = json!({ "rules": { "intA": { "required": true, "type": "string", "min": 2 } } });
    let stage = Stage::set(&rules, &json!({}))?;
    let envelope = |namespace: &str, inside: &str| {
        format!("<s:Envelope xmlns:s='{namespace}'><s:Body>{inside}</s:Body></s:Envelope>")
    };
    let [soap, newer] = ["http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2003/05/soap-envelope"];
    let message =
        |namespace: &str, int: &str| envelope(namespace, &format!("<Add xmlns='urn:x'><intA>{int}</intA></Add>"));
    for namespace in [soap, newer] {
        let (status, refused) = stage.post("text/xml", message(namespace, "1")).await?;
        assert_eq!((status, &refused["error_message"]), (400, &json!("String length must be at least 2")));
        let (status, seen) = stage.post("application/soap+xml", message(namespace, "12")).await?;
        assert_eq!((status, &seen["body"]), (200, &json!(message(namespace, "12"))));
    }
    let several = envelope(soap, "<Add><intA>12</intA><b/><intA>34</intA></Add>");
    assert_eq!(stage.post("text/xml", several).await?.0, 200);
    let dtd = "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>";
    for (body, told) in [
        ("<a/>".to_owned(), "SOAP Body not found"),
        ("<a>".to_owned(), "Invalid SOAP envelope"),
        (dtd.to_owned(), "DTDs"),
        (message("urn:other", "12"), "SOAP Body not found"),
        (format!("<x>{}</x>", message(soap, "12")), "SOAP Body not found"),
        (envelope(soap, "<Add><intA>1</intA></Add><Add><intA>12</intA></Add>"), "more than one element"),
        (message(soap, "12").replace("<s:Body>", "<s:Body><Add><intA>1</intA></Add></s:Body><s:Body>"), "one Body"),
        (
            message(soap, "12").replace("<s:Body>", "<s:Body xmlns:s='urn:y'><intA>1</intA></s:Body><s:Body>"),
            "Header and Body",
        ),
        (envelope(soap, "<Add><intA>1</intA><intA>12</intA></Add>"), "at least 2"),
        (envelope(soap, "<Add><intA>12</intA><intA>1</intA></Add>"), "at least 2"),
        (envelope(soap, "<Add><intA>12</intA><x:intA xmlns:x='urn:y'>12</x:intA></Add>"), "different namespaces"),
        (envelope(soap, "<Add><intA>12</intA><INTA>1</INTA></Add>"), "too much like"),
        (envelope(soap, "<Add intA='1'><intA>12</intA></Add>"), "attribute"),
        (message(soap, "1<!-- -->2"), "in pieces"),
        (message(soap, "1<![CDATA[2]]>"), "in pieces"),
        (message(soap, "12<b/>"), "beside elements"),
        (message(soap, "12<?x?>"), "processing instruction"),
        (message(soap, "12&#0;"), "Invalid SOAP envelope"),
        (message(soap, "12").replace("<intA>", "<intA b='1' b='2'>"), "Invalid SOAP envelope"),
        (format!("<?xml version='1.0' encoding='utf-16'?>{}", message(soap, "12")), "Invalid SOAP envelope"),
        (format!("<?xml version='1.1'?>{}", message(soap, "12")), "Invalid SOAP envelope"),
    ] {
        let (status, refused) = stage.post("text/xml", body.clone()).await?;
        assert!(
            status == 400 && refused["error_message"].as_str().unwrap_or_default().contains(told),
            "{body} {refused}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn requests_reach_the_upstream_changed() -> Result<()> {
    let transform = json!({ "requestTransform": {
        "headers": { "remove": ["User-Agent"], "rename": { "X-Old": "X-New" }, "add": { "X-Added": "1" } },
        "query": { "remove": ["debug"], "rename": { "q": "query" }, "add": { "tenant": "a b" } },
        "body": { "wrap": "data", "set": { "$.meta.source": "gateway" }, "remove": ["$.data.secret"] },
    }, "headers": { "allowed": ["X-Old"] } });
    let stage = Stage::set(&json!({ "rules": {} }), &transform)?;
    let body = r#"{"id": 12345678901234567890123, "secret": 1}"#;
    let headers = [("content-type", "application/json"), ("x-old", "o"), ("x-new", "n"), ("user-agent", "me")];
    let (status, seen) = read(stage.send("POST", "/echo?q=1&debug=2&z=%31&q=3", &headers, body).await?).await?;
    assert_eq!(status, 200, "{seen}");
    assert_eq!(seen["query"], "query=1&z=%31&query=3&tenant=a+b");
    let wanted = r#"{"data":{"id":12345678901234567890123},"meta":{"source":"gateway"}}"#;
    assert_eq!(seen["body"], wanted);
    let told = &seen["headers"];
    assert_eq!((&told["x-new"], &told["x-added"]), (&json!(["o"]), &json!(["1"])));
    assert_eq!(told["content-length"][0], wanted.len().to_string());
    assert!(told["x-old"].is_null() && told["user-agent"].is_null(), "{told}");

    let (status, seen) = stage.post("text/plain", "{}").await?;
    assert_eq!((status, &seen["body"]), (200, &json!("{}")), "only JSON is changed");
    let (status, seen) = stage.post("application/<b>json", body).await?;
    assert_eq!((status, &seen["headers"]["content-type"]), (200, &json!(["application/json"])));
    assert_eq!(seen["body"], wanted, "the upstream is told that it is JSON");
    let (status, refused) = stage.post("application/json", "{").await?;
    assert_eq!((status, &refused["error_code"]), (400, &json!("GTW011")));
    let (status, seen) = stage.post("application/json", "").await?;
    assert_eq!((status, &seen["body"]), (200, &json!("")));
    let (status, seen) = read(stage.get("/echo").await?).await?;
    assert_eq!((status, &seen["query"]), (200, &json!("tenant=a+b")));
    Ok(())
}

#[tokio::test]
async fn a_change_that_fails_leaves_the_request_as_it_was() -> Result<()> {
    let transform = json!({ "requestTransform": { "body": { "set": { "$.a.b": 1 } } } });
    let stage = Stage::set(&json!({ "rules": {} }), &transform)?;
    let (status, seen) = stage.post("application/json", r#"{"a": 7}"#).await?;
    assert_eq!((status, &seen["body"]), (200, &json!(r#"{"a": 7}"#)));
    Ok(())
}

#[tokio::test]
async fn answers_reach_the_client_changed() -> Result<()> {
    let transform = json!({ "responseTransform": {
        "headers": { "rename": { "X-Upstream": "X-Renamed" }, "add": { "X-Added": "1" } },
        "body": { "remove": ["$.headers", "$.server"], "rename": { "$.method": "$.verb" } },
        "statusMap": { "503": 502, "404": 410 },
    }, "headers": { "allowed": ["X-Upstream", "Accept-Encoding"] }, "cors": { "allowOrigins": ["http://a.example"] } });
    let stage = Stage::set(&json!({ "rules": {} }), &transform)?;
    let headers = [("origin", "http://a.example"), ("accept-encoding", "gzip")];
    let answer = stage.send("GET", "/headers", &headers, "").await?;
    let told = answer.headers();
    assert!(told["x-renamed"] == "sample" && told["x-added"] == "1", "{told:?}");
    assert_eq!(told["access-control-allow-origin"], "http://a.example");
    assert!(!told.contains_key("x-secret") && !told.contains_key("x-upstream"), "{told:?}");
    let length: usize = told["content-length"].to_str()?.parse()?;
    assert_eq!(told["x-body-length"], told["content-length"]);
    let text = answer.text().await?;
    assert_eq!(text.len(), length);
    let seen: Value = serde_json::from_str(&text)?;
    assert_eq!((&seen["verb"], seen.get("headers"), seen.get("method")), (&json!("GET"), None, None));

    for (path, status) in [("/status/503", 502), ("/status/404", 410), ("/status/500", 500), ("/status/204", 204)] {
        assert_eq!(stage.get(path).await?.status().as_u16(), status, "{path}");
    }
    let head = stage.send("HEAD", "/bytes/100", &[], "").await?;
    assert!(head.status() == 200 && !head.headers().contains_key("content-length"), "{head:?}");
    let stream = stage.get("/stream/2").await?.text().await?;
    assert_eq!(stream, "chunk 1\nchunk 2\n");
    Ok(())
}

#[tokio::test]
async fn the_upstream_of_changed_answers_is_asked_not_to_compress() -> Result<()> {
    let transform = json!({ "responseTransform": { "body": { "wrap": "data" } } });
    let gzip = ("accept-encoding", "gzip");
    let stage = Stage::set(&json!({ "rules": {} }), &transform)?;
    let (_, seen) = read(stage.send("GET", "/echo", &[gzip], "").await?).await?;
    assert!(seen["data"]["headers"]["accept-encoding"].is_null(), "{seen}");
    let plain = Stage::set(&json!({ "rules": {} }), &json!({}))?;
    let (_, seen) = read(plain.send("GET", "/echo", &[gzip], "").await?).await?;
    assert_eq!(seen["headers"]["accept-encoding"][0], "gzip");

    let bytes = b"not really compressed";
    let upstream = fixed(&answer_of("200 OK\r\nContent-Type: application/json\r\nContent-Encoding: br", bytes))?;
    for more in [transform, json!({ "envelope": true })] {
        let stage = Stage::before(upstream, &json!({ "rules": {} }), &more)?;
        let answer = stage.send("GET", "/fixed", &[gzip], "").await?;
        assert_eq!(answer.headers()["content-encoding"], "br");
        assert_eq!(&*answer.bytes().await?, bytes, "what comes compressed all the same is not touched");
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_too_large_to_be_changed_passes_whole() -> Result<()> {
    let transform = json!({ "responseTransform": { "body": { "wrap": "d" } } });
    let large = [b"\"", "a".repeat(MAX_CHANGED).as_bytes(), b"\""].concat();
    let told = answer_of("200 OK\r\nContent-Type: application/json", &large);
    let untold = [b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n", &*large].concat();
    for answer in [told, untold] {
        let stage = Stage::before(fixed(&answer)?, &json!({ "rules": {} }), &transform)?;
        let seen = stage.get("/fixed").await?.bytes().await?;
        assert!(seen == large, "{} bytes of {}", seen.len(), large.len());
    }
    let small = answer_of("200 OK\r\nContent-Type: application/json", b"[1.0]");
    let stage = Stage::before(fixed(&small)?, &json!({ "rules": {} }), &transform)?;
    assert_eq!(stage.get("/fixed").await?.text().await?, r#"{"d":[1.0]}"#);
    let broken = answer_of("200 OK\r\nContent-Type: application/json", b"[1");
    let stage = Stage::before(fixed(&broken)?, &json!({ "rules": {} }), &transform)?;
    assert_eq!(stage.get("/fixed").await?.text().await?, "[1", "what is not JSON is not touched");
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_breaks_off_while_it_is_read_is_a_failure() -> Result<()> {
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    let transform = json!({ "responseTransform": { "body": { "wrap": "d" } } });
    let stage = Stage::before(fixed(head)?, &json!({ "rules": {} }), &transform)?;
    let (status, refused) = read(stage.get("/fixed").await?).await?;
    assert_eq!((status, &refused["error_code"]), (500, &json!("GTW006")));
    Ok(())
}

#[tokio::test]
async fn the_envelope_tells_the_status_and_keeps_it() -> Result<()> {
    let stage =
        Stage::set(&user_rules(), &json!({ "envelope": true, "cors": { "allowOrigins": ["http://a.example"] } }))?;
    let answer = stage.send("GET", "/status/503", &[("origin", "http://a.example")], "").await?;
    assert_eq!(answer.headers()["access-control-allow-origin"], "http://a.example");
    let length = answer.headers()["content-length"].clone();
    assert_eq!(
        (answer.status(), &answer.headers()["x-body-length"]),
        (reqwest::StatusCode::SERVICE_UNAVAILABLE, &length)
    );
    let text = answer.text().await?;
    assert_eq!(text, r#"{"status_code":503,"response":{"status":503}}"#);
    assert_eq!(text.len().to_string(), length.to_str()?);

    let bytes = stage.get("/bytes/300000").await?.bytes().await?;
    let seen: Value = serde_json::from_slice(&bytes)?;
    assert_eq!((&seen["status_code"], seen["response"]["data"].is_string()), (&json!(200), true));
    let head = stage.send("HEAD", "/bytes/300000", &[], "").await?;
    assert_eq!(head.headers()["content-length"], bytes.len().to_string());
    assert_eq!(stage.get("/bytes/0").await?.text().await?, r#"{"status_code":200}"#);
    assert_eq!(stage.get("/stream/1").await?.text().await?, "chunk 1\n");
    let empty = stage.get("/status/204").await?;
    assert_eq!((empty.status().as_u16(), empty.text().await?.as_str()), (204, ""));

    let (status, refused) = stage.post("application/json", "{}").await?;
    let wanted = json!({ "status_code": 400, "error_code": "GTW011", "error_message": "Field is required" });
    assert_eq!((status, refused), (400, wanted));
    let (status, refused) = read(stage.get("/none").await?).await?;
    assert_eq!((status, &refused["status_code"], &refused["error_code"]), (404, &json!(404), &json!("GTW003")));
    let unknown = stage.http.get(stage.gateway.url("/api/rest/b/v1/x")).send().await?;
    assert!(read(unknown).await?.1["status_code"].is_null(), "an API that is not there asks for nothing");
    Ok(())
}

#[tokio::test]
async fn the_envelope_goes_around_what_was_changed_over_http2_too() -> Result<()> {
    let transform = json!({ "envelope": true, "responseTransform": { "body": { "set": { "$.new": 1 } }, "statusMap": { "500": 502 } } });
    let mut stage = Stage::set(&json!({ "rules": {} }), &transform)?;
    stage.http = Client::builder().http2_prior_knowledge().build()?;
    let (status, seen) = read(stage.get("/status/500").await?).await?;
    assert_eq!((status, seen), (502, json!({ "status_code": 502, "response": { "status": 500, "new": 1 } })));
    let chunked = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\n[\r\n1\r\n]\r\n0\r\n\r\n";
    let mut stage = Stage::before(fixed(chunked)?, &json!({ "rules": {} }), &json!({ "envelope": true }))?;
    assert_eq!(stage.get("/fixed").await?.text().await?, r#"{"status_code":200,"response":[]}"#);
    stage.http = Client::builder().http2_prior_knowledge().build()?;
    assert_eq!(stage.get("/fixed").await?.text().await?, r#"{"status_code":200,"response":[]}"#);
    Ok(())
}
