//! TLS towards upstreams as an API says: whom to trust, what to show, for which name, and new Secrets while calls go on.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use doorman_tests::certificates::{Authority, Certificate};
use doorman_tests::gateway::{GatewayProcess, PATIENCE, Start};
use doorman_tests::upstream;
use reqwest::Client;
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");

/// A Secret that trusts this authority.
fn trust(name: &str, authority: &Authority) -> Value {
    secret(name, json!({"ca.crt": authority.pem()}))
}

/// A Secret with this certificate.
fn pair(name: &str, certificate: &Certificate) -> Value {
    secret(name, json!({"tls.crt": certificate.chain, "tls.key": certificate.key}))
}

fn secret(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
}

fn api(name: &str, server: &str, tls: Value) -> Value {
    let mut spec = json!({
        "name": name, "version": "v1", "protocol": "REST", "public": true, "servers": [server],
        "endpoints": [{"method": "GET", "uri": "/x"}],
    });
    if !tls.is_null() {
        spec["upstream"] = json!({"tls": tls});
    }
    json!({"apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi", "metadata": {"name": name}, "spec": spec})
}

fn documents(all: &[Value]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n---\n")
}

/// With `clients`, only those whose certificate this authority signed are let in.
fn upstream(own: &Certificate, clients: Option<&Authority>) -> Result<upstream::Running> {
    let tls = upstream::Tls::new(own, clients.map(Authority::pem).as_deref())?;
    Ok(upstream::start_tls(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), tls)?)
}

/// What an API answers; of the sample upstream's echo, the name it was called by and the certificate it was shown.
async fn call(client: &Client, gateway: &GatewayProcess, api: &str) -> Result<(u16, String)> {
    let answer = client.get(gateway.url(&format!("/api/rest/{api}/v1/x"))).send().await?;
    let (status, text) = (answer.status().as_u16(), answer.text().await?);
    let echo = serde_json::from_str::<Value>(&text).ok().filter(|_| status == 200);
    let word = |name: &str| echo.as_ref()?["tls"][name].as_str().map(str::to_owned);
    let told =
        echo.is_some().then(|| [word("server_name"), word("certificate")].map(Option::unwrap_or_default).join(" "));
    Ok((status, told.unwrap_or(text)))
}

/// Waits until the API answers so.
async fn eventually(
    client: &Client,
    gateway: &GatewayProcess,
    api: &str,
    wanted: impl Fn(u16, &str) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, text) = call(client, gateway, api).await?;
        if wanted(status, &text) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{api} still answers {status} {text}\n{}", gateway.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_is_trusted_as_its_api_says_and_others_are_not_concerned() -> Result<()> {
    let (ca, other) = (Authority::new()?, Authority::new()?);
    let upstream = upstream(&ca.sign("localhost")?, None)?;
    let server = &*format!("https://localhost:{}", upstream.address().port());
    let trusting = |name: &str| json!({"caSecretRef": {"name": name}});
    let mut all = vec![
        api("right", server, trusting("ca")),
        api("wrong", server, trusting("other")),
        api("usual", server, Value::Null),
        api("keyed", server, json!({"caSecretRef": {"name": "keyed", "key": "roots.pem"}})),
        api("missing", server, trusting("nowhere")),
        api("empty", server, trusting("empty")),
        api("garbage", server, trusting("garbage")),
        api("pair", server, json!({"clientCertificateSecretRef": {"name": "pair"}})),
        trust("ca", &ca),
        trust("other", &other),
        secret("keyed", json!({"roots.pem": other.pem() + &ca.pem()})),
        secret("empty", json!({"other": "value"})),
        secret("garbage", json!({"ca.crt": "geheim"})),
        secret("pair", json!({"tls.crt": ca.sign("a")?.chain, "tls.key": ca.sign("b")?.key})),
    ];
    let gateway = Start::new(BINARY)?.manifest("all.yaml", &documents(&all))?.run()?;
    let client = Client::new();
    for (name, status, told) in [
        ("right", 200, "localhost"),
        // A connection that another API has opened to the same address is not for it.
        ("wrong", 500, "GTW006"),
        ("usual", 500, "GTW006"),
        ("keyed", 200, "localhost"),
        ("missing", 503, "GTW503"),
        ("empty", 503, "GTW503"),
        ("garbage", 503, "GTW503"),
        ("pair", 503, "GTW503"),
        ("right", 200, "localhost"),
    ] {
        let (got, text) = call(&client, &gateway, name).await?;
        assert_eq!(got, status, "{name}: {text}\n{}", gateway.log());
        assert!(text.contains(told), "{name}: {text}");
    }
    // Callers are told no names of Secrets; those who run the gateway are.
    for reason in [
        "spec.upstream.tls.caSecretRef: no Secret is named `nowhere`",
        "spec.upstream.tls.caSecretRef: the Secret `empty` has no key `ca.crt`",
        "spec.upstream.tls.caSecretRef: `ca.crt` of the Secret `garbage` must hold certificates in PEM",
        "spec.upstream.tls.clientCertificateSecretRef: can't be used",
    ] {
        gateway.logged(reason).await?;
    }
    assert!(!gateway.log().contains("geheim"), "the log tells what is in a Secret");
    let revision = client.get(gateway.admin_url("/revision")).send().await?.json::<Value>().await?;
    let refused = revision["rejected"].as_array().context("no list")?;
    let reason = |name: &str| refused.iter().find(|one| one["name"] == name).map(|one| one["reason"].clone());
    assert_eq!(reason("missing"), Some(json!("SecretNotFound")), "{refused:?}");
    assert_eq!(reason("garbage"), Some(json!("InvalidSecret")), "{refused:?}");

    all.push(trust("nowhere", &ca));
    gateway.write_manifest("all.yaml", &documents(&all))?;
    eventually(&client, &gateway, "missing", |status, _| status == 200).await?;
    all.retain(|object| object["metadata"]["name"] != "ca");
    gateway.write_manifest("all.yaml", &documents(&all))?;
    eventually(&client, &gateway, "right", |status, text| status == 503 && text.contains("GTW503")).await?;
    gateway.logged("no Secret is named `ca`").await?;
    assert_eq!(call(&client, &gateway, "missing").await?.0, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_asks_for_a_certificate_is_shown_that_of_the_api() -> Result<()> {
    let (ca, clients) = (Authority::new()?, Authority::new()?);
    let upstream = upstream(&ca.sign("localhost")?, Some(&clients))?;
    let server = &*format!("https://localhost:{}", upstream.address().port());
    let (known, stranger) = (clients.sign("gateway")?, ca.sign("gateway")?);
    let showing = |name: &str| json!({"caSecretRef": {"name": "ca"}, "clientCertificateSecretRef": {"name": name}});
    let all = [
        api("known", server, showing("known")),
        api("stranger", server, showing("stranger")),
        api("nobody", server, json!({"caSecretRef": {"name": "ca"}})),
        trust("ca", &ca),
        pair("known", &known),
        pair("stranger", &stranger),
    ];
    let gateway = Start::new(BINARY)?.manifest("all.yaml", &documents(&all))?.run()?;
    let client = Client::new();
    let told = call(&client, &gateway, "known").await?;
    assert_eq!(told, (200, format!("localhost {}", known.fingerprint()?)), "{}", gateway.log());
    for name in ["stranger", "nobody"] {
        let (status, text) = call(&client, &gateway, name).await?;
        assert!(status == 500 && text.contains("GTW006"), "{name}: {status} {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_to_check_may_be_another_than_the_one_to_call() -> Result<()> {
    let ca = Authority::new()?;
    let upstream = upstream(&ca.sign("orders.internal")?, None)?;
    let server = &*format!("https://localhost:{}", upstream.address().port());
    let named = |name: &str| json!({"caSecretRef": {"name": "ca"}, "serverName": name});
    let all = [
        api("named", server, named("orders.internal")),
        api("misnamed", server, named("payments.internal")),
        api("unnamed", server, json!({"caSecretRef": {"name": "ca"}})),
        trust("ca", &ca),
    ];
    let gateway = Start::new(BINARY)?.manifest("all.yaml", &documents(&all))?.run()?;
    let client = Client::new();
    let told = call(&client, &gateway, "named").await?;
    assert_eq!(told, (200, "orders.internal ".to_owned()), "{}", gateway.log());
    for name in ["misnamed", "unnamed"] {
        assert_eq!(call(&client, &gateway, name).await?.0, 500, "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_secret_is_taken_up_without_a_restart_and_without_a_failed_call() -> Result<()> {
    let (ca, clients) = (Authority::new()?, Authority::new()?);
    for http2 in ["false", "true"] {
        let upstream = upstream(&ca.sign("localhost")?, Some(&clients))?;
        let server = format!("https://localhost:{}", upstream.address().port());
        let showing = json!({"caSecretRef": {"name": "ca"}, "clientCertificateSecretRef": {"name": "own"}});
        let (old, new) = (clients.sign("old")?, clients.sign("new")?);
        let start = Start::new(BINARY)?.with("HTTP_ENABLE_HTTP2", http2);
        let start = start.manifest("api.yaml", &documents(&[api("a", &server, showing), trust("ca", &ca)]))?;
        let gateway = Arc::new(start.manifest("own.yaml", &pair("own", &old).to_string())?.run()?);
        let told =
            |certificate: &Certificate| Ok::<_, anyhow::Error>(format!("localhost {}", certificate.fingerprint()?));
        let (old_told, new_told) = (told(&old)?, told(&new)?);
        let caller = || {
            let (gateway, old, new) = (gateway.clone(), old_told.clone(), new_told.clone());
            tokio::spawn(async move {
                let client = Client::new();
                let deadline = Instant::now() + PATIENCE;
                // Some calls more with the new one.
                let mut left = 20;
                while left > 0 {
                    let (status, text) = call(&client, &gateway, "a").await?;
                    ensure!(status == 200 && (text == old || text == new), "{status} {text}\n{}", gateway.log());
                    left -= i32::from(text == new);
                    ensure!(Instant::now() < deadline, "the old certificate is still shown\n{}", gateway.log());
                }
                Ok(())
            })
        };
        let first = call(&Client::new(), &gateway, "a").await?;
        assert_eq!(first, (200, old_told.clone()), "{}", gateway.log());
        let callers: Vec<_> = (0..4).map(|_| caller()).collect();
        gateway.write_manifest("own.yaml", &pair("own", &new).to_string())?;
        for caller in callers {
            caller.await??;
        }
        // One that can't be used: it is said, the one before is shown on, and the next good one is taken up.
        gateway
            .write_manifest("own.yaml", &secret("own", json!({"tls.crt": new.chain, "tls.key": "none"})).to_string())?;
        let client = Client::new();
        let deadline = Instant::now() + PATIENCE;
        let told_so = async || {
            let revision = client.get(gateway.admin_url("/revision")).send().await?.json::<Value>().await?;
            let told = revision["unusable"][0]["message"].as_str().unwrap_or_default();
            anyhow::Ok(told.contains("`tls.key`") && revision["rejected"] == json!([]))
        };
        while !told_so().await? {
            ensure!(Instant::now() < deadline, "nothing is said of the bad Secret\n{}", gateway.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(call(&client, &gateway, "a").await?, (200, new_told.clone()), "{}", gateway.log());
        gateway.write_manifest("own.yaml", &pair("own", &old).to_string())?;
        eventually(&client, &gateway, "a", |status, text| status == 200 && text == old_told).await?;
    }
    Ok(())
}
