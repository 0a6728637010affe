//! Bodies that are checked, changed and wrapped: a real gateway process between real sockets.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::Result;
use doorman_tests::gateway::{GatewayProcess, Start};
use doorman_tests::upstream;
use reqwest::{Client, Response};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");
/// What is changed of an answer at the most.
const MAX_CHANGED: usize = 8 << 20;

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

/// An upstream that answers each request with these bytes, and closes.
fn fixed(answer: &[u8]) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (address, answer) = (listener.local_addr()?, answer.to_vec());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            let _ = stream.write_all(&answer);
        }
    });
    Ok(address)
}

fn answer_of(head: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
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
    for kind in ["application/problem+json", "Application/JSON; charset=UTF-8"] {
        assert_eq!(stage.post(kind, good).await?.0, 200, "{kind}");
    }
    let json = ("content-type", "application/json");
    for (headers, body) in [
        (&[][..], good),
        (&[("content-type", "text/plain")], good),
        (&[("content-type", "application/x-www-form-urlencoded; a=json")], "user.name=A"),
        (&[("content-type", "application/json; charset=utf-7")], good),
        (&[json, ("content-type", "text/plain")], good),
        (&[json, ("content-encoding", "gzip")], good),
        (&[json], r#"{"user":{"name":"Alan","age":33},"user":{}}"#),
        (&[json], "{"),
        (&[json], &"[".repeat(100)),
        (&[("content-type", "application/xml")], good),
        (&[("content-type", "application/xml")], "<user><name>Alan</name></user>"),
    ] {
        for method in ["POST", "PUT", "DELETE"] {
            let (status, refused) = read(stage.send(method, "/echo", headers, body.to_owned()).await?).await?;
            assert_eq!((status, &refused["error_code"]), (400, &json!("GTW011")), "{method} {headers:?}: {refused}");
        }
    }
    assert_eq!(stage.send("DELETE", "/echo", &[], "").await?.status(), 400, "nothing is a body without fields");
    let (status, seen) = read(stage.send("GET", "/echo", &[json], "{").await?).await?;
    assert_eq!((status, &seen["body"]), (200, &json!("")), "what never goes upstream is not checked");
    Ok(())
}

#[tokio::test]
async fn messages_of_soap_are_checked_by_their_payload() -> Result<()> {
    let rules = json!({ "rules": { "intA": { "required": true, "type": "string", "min": 2 } } });
    let stage = Stage::set(&rules, &json!({}))?;
    let message = |namespace: &str, int: &str| {
        format!(
            "<s:Envelope xmlns:s='{namespace}'><s:Body><Add xmlns='urn:x'><intA>{int}</intA></Add></s:Body></s:Envelope>"
        )
    };
    for namespace in ["http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2003/05/soap-envelope"] {
        let (status, refused) = stage.post("text/xml", message(namespace, "1")).await?;
        assert_eq!((status, &refused["error_message"]), (400, &json!("String length must be at least 2")));
        let (status, seen) = stage.post("application/soap+xml", message(namespace, "12")).await?;
        assert_eq!((status, &seen["body"]), (200, &json!(message(namespace, "12"))));
    }
    let dtd = "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>";
    for (body, told) in [("<a/>", "SOAP Body not found"), ("<a>", "Invalid SOAP envelope"), (dtd, "DTDs")] {
        let (status, refused) = stage.post("text/xml", body).await?;
        assert!(status == 400 && refused["error_message"].as_str().unwrap_or_default().contains(told), "{refused}");
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
    let upstream = fixed(&answer_of("200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip", bytes))?;
    for more in [transform, json!({ "envelope": true })] {
        let stage = Stage::before(upstream, &json!({ "rules": {} }), &more)?;
        let answer = stage.send("GET", "/fixed", &[gzip], "").await?;
        assert_eq!(answer.headers()["content-encoding"], "gzip");
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
