//! TLS towards upstreams as an API says: whom to trust, what to show, for which name, and new Secrets while calls go on.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use doorman_tests::gateway::{GatewayProcess, PATIENCE, Start};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::Client;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");

struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
struct Certificate {
    chain: String,
    key: String,
}

impl Authority {
    fn new() -> Result<Self> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?))
    }

    fn sign(&self, name: &str) -> Result<Certificate> {
        let key = KeyPair::generate()?;
        let chain = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &self.0)?.pem();
        Ok(Certificate { chain, key: key.serialize_pem() })
    }

    /// A Secret that trusts it.
    fn secret(&self, name: &str) -> Value {
        secret(name, json!({"ca.crt": self.0.pem()}))
    }
}

impl Certificate {
    fn secret(&self, name: &str) -> Value {
        secret(name, json!({"tls.crt": self.chain, "tls.key": self.key}))
    }

    fn fingerprint(&self) -> Result<String> {
        Ok(fingerprint(&CertificateDer::from_pem_slice(self.chain.as_bytes())?))
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    format!("{:02x?}", &Sha256::digest(certificate)[..])
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

/// An upstream that tells the name it was called by and the certificate it was shown. With `clients`, only those whose
/// certificate this authority signed are let in.
async fn upstream(own: &Certificate, clients: Option<&Authority>) -> Result<SocketAddr> {
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.0.der().clone())?;
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?,
            )
        }
    };
    let chain = CertificateDer::pem_slice_iter(own.chain.as_bytes()).collect::<Result<_, _>>()?;
    let mut config = builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(own.key.as_bytes())?)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let session = stream.get_ref().1;
                let shown = session.peer_certificates().and_then(<[_]>::first).map(fingerprint).unwrap_or_default();
                let told = format!("{} {shown}", session.server_name().unwrap_or_default());
                let service = service_fn(move |_| {
                    let answer = http::Response::new(Full::new(Bytes::from(told.clone())));
                    async move { Ok::<_, std::convert::Infallible>(answer) }
                });
                drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    Ok(address)
}

async fn call(client: &Client, gateway: &GatewayProcess, api: &str) -> Result<(u16, String)> {
    let answer = client.get(gateway.url(&format!("/api/rest/{api}/v1/x"))).send().await?;
    Ok((answer.status().as_u16(), answer.text().await?))
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
    let address = upstream(&ca.sign("localhost")?, None).await?;
    let server = &*format!("https://localhost:{}", address.port());
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
        ca.secret("ca"),
        other.secret("other"),
        secret("keyed", json!({"roots.pem": other.0.pem() + &ca.0.pem()})),
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
        ("missing", 503, "spec.upstream.tls.caSecretRef: no Secret is named `nowhere`"),
        ("empty", 503, "the Secret `empty` has no key `ca.crt`"),
        ("garbage", 503, "`ca.crt` of the Secret `garbage` must hold certificates in PEM"),
        ("pair", 503, "spec.upstream.tls.clientCertificateSecretRef: can't be used"),
        ("right", 200, "localhost"),
    ] {
        let (got, text) = call(&client, &gateway, name).await?;
        assert_eq!(got, status, "{name}: {text}\n{}", gateway.log());
        assert!(text.contains(told), "{name}: {text}");
    }
    assert!(!gateway.log().contains("geheim"), "the log tells what is in a Secret");
    let revision = client.get(gateway.admin_url("/revision")).send().await?.json::<Value>().await?;
    let refused = revision["rejected"].as_array().context("no list")?;
    let reason = |name: &str| refused.iter().find(|one| one["name"] == name).map(|one| one["reason"].clone());
    assert_eq!(reason("missing"), Some(json!("RefNotFound")), "{refused:?}");
    assert_eq!(reason("garbage"), Some(json!("Invalid")), "{refused:?}");

    all.push(ca.secret("nowhere"));
    gateway.write_manifest("all.yaml", &documents(&all))?;
    eventually(&client, &gateway, "missing", |status, _| status == 200).await?;
    all.retain(|object| object["metadata"]["name"] != "ca");
    gateway.write_manifest("all.yaml", &documents(&all))?;
    eventually(&client, &gateway, "right", |status, text| status == 503 && text.contains("`ca`")).await?;
    assert_eq!(call(&client, &gateway, "missing").await?.0, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_asks_for_a_certificate_is_shown_that_of_the_api() -> Result<()> {
    let (ca, clients) = (Authority::new()?, Authority::new()?);
    let address = upstream(&ca.sign("localhost")?, Some(&clients)).await?;
    let server = &*format!("https://localhost:{}", address.port());
    let (known, stranger) = (clients.sign("gateway")?, ca.sign("gateway")?);
    let showing = |name: &str| json!({"caSecretRef": {"name": "ca"}, "clientCertificateSecretRef": {"name": name}});
    let all = [
        api("known", server, showing("known")),
        api("stranger", server, showing("stranger")),
        api("nobody", server, json!({"caSecretRef": {"name": "ca"}})),
        ca.secret("ca"),
        known.secret("known"),
        stranger.secret("stranger"),
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
    let address = upstream(&ca.sign("orders.internal")?, None).await?;
    let server = &*format!("https://localhost:{}", address.port());
    let named = |name: &str| json!({"caSecretRef": {"name": "ca"}, "serverName": name});
    let all = [
        api("named", server, named("orders.internal")),
        api("misnamed", server, named("payments.internal")),
        api("unnamed", server, json!({"caSecretRef": {"name": "ca"}})),
        ca.secret("ca"),
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
        let address = upstream(&ca.sign("localhost")?, Some(&clients)).await?;
        let server = format!("https://localhost:{}", address.port());
        let showing = json!({"caSecretRef": {"name": "ca"}, "clientCertificateSecretRef": {"name": "own"}});
        let (old, new) = (clients.sign("old")?, clients.sign("new")?);
        let start = Start::new(BINARY)?.with("HTTP_ENABLE_HTTP2", http2);
        let start = start.manifest("api.yaml", &documents(&[api("a", &server, showing), ca.secret("ca")]))?;
        let gateway = Arc::new(start.manifest("own.yaml", &old.secret("own").to_string())?.run()?);
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
        gateway.write_manifest("own.yaml", &new.secret("own").to_string())?;
        for caller in callers {
            caller.await??;
        }
        // One that can't be used: the API says so, and is back with the next good one.
        gateway
            .write_manifest("own.yaml", &secret("own", json!({"tls.crt": new.chain, "tls.key": "none"})).to_string())?;
        let client = Client::new();
        eventually(&client, &gateway, "a", |status, text| status == 503 && text.contains("`tls.key`")).await?;
        gateway.write_manifest("own.yaml", &old.secret("own").to_string())?;
        eventually(&client, &gateway, "a", |status, text| status == 200 && text == old_told).await?;
    }
    Ok(())
}
