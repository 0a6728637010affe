//! The ways to MongoDB: what the settings come to, and real connections with TLS, a bounded pool and breaks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use futures::future::join_all;
use mongodb::options::{ClientOptions, ServerAddress, Tls};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    settings::Settings,
    store::servers::{Certificates, Server, external},
};

const NOBODY: u16 = 1;

async fn options_of(changes: &[(&str, &str)]) -> ClientOptions {
    let settings = external(NOBODY, NOBODY, changes);
    connect::options(&settings.storage, TIMEOUT, DATABASE).await.unwrap()
}

async fn documents(settings: &Settings) -> Documents {
    Documents::connect(&settings.storage).await.unwrap()
}

async fn error_of(settings: &Settings) -> String {
    Documents::connect(&settings.storage).await.err().expect("it connects").to_string()
}

#[tokio::test]
async fn settings_make_hosts_login_and_pool() {
    const PASSWORD: &str = "p@ss: w/ör%d?#[]";
    let options = options_of(&[
        ("MONGO_DB_HOSTS", "a:1,b"),
        ("MONGO_REPLICA_SET_NAME", "rs0"),
        ("MONGO_DB_USER", "us er@x"),
        ("MONGO_DB_PASSWORD", PASSWORD),
        ("MONGO_DB_AUTH_SOURCE", "admin"),
        ("MONGO_DB_MAX_POOL_SIZE", "7"),
        ("MONGO_DB_MIN_POOL_SIZE", "2"),
    ])
    .await;
    let hosts = [("a", Some(1)), ("b", None)].map(|(host, port)| ServerAddress::Tcp { host: host.to_owned(), port });
    assert_eq!((options.hosts.as_slice(), options.repl_set_name.as_deref()), (&hosts[..], Some("rs0")));
    let login = options.credential.unwrap();
    let told = (login.username.as_deref(), login.password.as_deref(), login.source.as_deref());
    assert_eq!(told, (Some("us er@x"), Some(PASSWORD), Some("admin")));
    assert_eq!((options.max_pool_size, options.min_pool_size), (Some(7), Some(2)));
    assert_eq!((options.tls, options.default_database.as_deref()), (None, Some("doorman")));
    let usual = options_of(&[("MONGO_DB_USER", "u"), ("MONGO_DB_PASSWORD", "p")]).await;
    assert_eq!(usual.credential.unwrap().source.as_deref(), Some("doorman"));
    assert_eq!((usual.max_pool_size, usual.min_pool_size), (Some(100), Some(5)));
}

#[tokio::test]
async fn a_connection_string_wins_and_the_settings_fill_what_it_leaves_open() {
    let files = Certificates::new();
    let (ca, both) = (files.path("ca.pem"), files.path("client-both.pem"));
    let with = async |uri: &str| {
        let changes = [("MONGO_DB_URI", uri), ("MONGO_DB_TLS_CA_FILE", &ca), ("MONGO_DB_TLS_CERT_KEY_FILE", &both)];
        options_of(&changes).await
    };
    let options = with("mongodb://u:p%40ss@m:1/own?maxPoolSize=3&tls=true&authSource=admin").await;
    assert_eq!(options.credential.unwrap().password.as_deref(), Some("p@ss"));
    assert_eq!((options.max_pool_size, options.min_pool_size), (Some(3), Some(3)), "the least is not above the most");
    assert_eq!(options.default_database.as_deref(), Some("own"));
    let Some(Tls::Enabled(tls)) = options.tls else { panic!() };
    assert_eq!(tls.ca_file_path, Some(ca.clone().into()));
    assert_eq!(tls.cert_key_file_path, Some(both.clone().into()));
    assert!(!matches!(with("mongodb://m:1").await.tls, Some(Tls::Enabled(_))));

    let clash = [("MONGO_DB_URI", "mongodb://m:1/?tls=false"), ("MONGO_DB_TLS", "true")];
    let error = error_of(&external(NOBODY, NOBODY, &clash)).await;
    assert!(error.contains("MONGO_DB_URI") && error.contains("MONGO_DB_TLS"), "{error}");
}

#[tokio::test]
async fn tls_is_checked_in_both_directions_and_mistakes_are_called_so() {
    let files = Certificates::new();
    let server = Server::mongo_tls(&files);
    let (ca, other, both) = (files.path("ca.pem"), files.path("other-ca.pem"), files.path("client-both.pem"));
    let right = [("MONGO_DB_TLS", "1"), ("MONGO_DB_TLS_CA_FILE", &*ca), ("MONGO_DB_TLS_CERT_KEY_FILE", &*both)];
    let settings = external(NOBODY, server.port, &right);
    documents(&settings).await.ping().await.unwrap();
    let uri = format!("mongodb://127.0.0.1:{}/?tls=true&tlsCAFile={ca}&tlsCertificateKeyFile={both}", server.port);
    documents(&external(NOBODY, NOBODY, &[("MONGO_DB_URI", &uri)])).await.ping().await.unwrap();

    let untrusted = [("MONGO_DB_TLS", "1"), ("MONGO_DB_TLS_CA_FILE", &*other), ("MONGO_DB_TLS_CERT_KEY_FILE", &*both)];
    let (anonymous, plain_server) = (&right[..2], Server::mongo());
    let cases = [
        (server.port, &untrusted[..], ["invalid peer certificate", "MONGO_DB_TLS_CA_FILE"]),
        (server.port, anonymous, ["CertificateRequired", "MONGO_DB_TLS_CERT_KEY_FILE"]),
        (server.port, &[], ["end of file", "set MONGO_DB_TLS"]),
        (plain_server.port, &right, ["No available servers", "MONGO_DB_TLS is on"]),
        (
            plain_server.port,
            &[("MONGO_DB_USER", "u"), ("MONGO_DB_PASSWORD", "p")],
            ["Authentication", "MONGO_DB_AUTH_SOURCE"],
        ),
    ];
    // Each takes as long as the client looks for a server.
    join_all(cases.map(async |(port, changes, parts)| {
        let error = error_of(&external(NOBODY, port, changes)).await;
        assert!(parts.iter().all(|part| error.contains(part)), "{changes:?}: {error}");
    }))
    .await;
}

/// Passes bytes on, slowly, and knows how many connections it had at most.
async fn slow_proxy(to: u16) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let most = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&most);
    tokio::spawn(async move {
        let open = Arc::new(AtomicUsize::new(0));
        while let Ok((client, _)) = listener.accept().await {
            counted.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let open = Arc::clone(&open);
            tokio::spawn(async move {
                let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                let answers = async {
                    let mut buffer = vec![0; 65_536];
                    while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        if to_client.write_all(&buffer[..read]).await.is_err() {
                            break;
                        }
                    }
                };
                tokio::select! {
                    () = answers => {}
                    _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                }
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (port, most)
}

#[tokio::test]
async fn the_pool_never_grows_beyond_its_size() {
    let server = Server::mongo();
    let (port, most) = slow_proxy(server.port).await;
    let sizes = [("MONGO_DB_MAX_POOL_SIZE", "3"), ("MONGO_DB_MIN_POOL_SIZE", "0")];
    let documents = documents(&external(NOBODY, port, &sizes)).await;
    let answers = join_all((0..40).map(|_| documents.ping())).await;
    assert!(answers.iter().all(Result::is_ok));
    // Besides the pool the client watches the server by one connection and measures its distance by another.
    let most = most.load(Ordering::SeqCst);
    assert!((3..=5).contains(&most), "{most}");
}

#[tokio::test]
async fn after_a_restart_and_a_hang_it_answers_again_and_no_wait_is_endless() {
    let mut server = Server::mongo();
    let documents = documents(&external(NOBODY, server.port, &[])).await;
    documents.ping().await.unwrap();
    let comes_back = async || {
        let start = Instant::now();
        while documents.ping().await.is_err() {
            assert!(start.elapsed() < 3 * TIMEOUT, "still away");
        }
    };
    server.stop();
    let start = Instant::now();
    assert!(documents.ping().await.is_err());
    assert!(start.elapsed() < TIMEOUT + TIMEOUT / 5, "{:?}", start.elapsed());
    server.restart();
    comes_back().await;

    server.hang();
    let start = Instant::now();
    assert!(documents.ping().await.is_err());
    assert!(start.elapsed() < TIMEOUT + TIMEOUT / 5, "{:?}", start.elapsed());
    server.go_on();
    comes_back().await;
}
