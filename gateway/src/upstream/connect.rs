//! Opening a connection: name resolution, egress rules, TCP and TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use doorman_crds::api::{is_forbidden_address, is_loopback_address};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::UpstreamError;

/// How long an address is waited for until the next one is tried beside it (RFC 8305 8).
const STAGGER: Duration = Duration::from_millis(250);

/// An open connection.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What TLS is spoken with.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) config: Arc<ClientConfig>,
    /// Whom the certificate must be for.
    pub(super) name: ServerName<'static>,
}

/// Connects to the first address that answers. Every address a name resolves to must pass the egress rules, so that a
/// name can't smuggle a forbidden one in beside an allowed one.
pub(super) async fn connect(
    host: &str,
    port: u16,
    tls: Option<&Way>,
    allow_loopback: bool,
) -> Result<Stream, UpstreamError> {
    let addresses: Vec<SocketAddr> =
        lookup_host((host, port)).await.map_err(|error| UpstreamError::Connect(format!("{host}: {error}")))?.collect();
    if let Some(address) = forbidden(&addresses, allow_loopback) {
        return Err(UpstreamError::Forbidden(address));
    }
    let stream = first_to_open(host, addresses, TcpStream::connect).await.map_err(UpstreamError::Connect)?;
    // Requests are written whole; waiting to fill a segment only adds latency.
    let _ = stream.set_nodelay(true);
    match tls {
        Some(way) => secure(stream, host, way).await,
        None => Ok(Stream::Plain(stream)),
    }
}

/// Which of these addresses no call may reach, if there is one.
fn forbidden(addresses: &[SocketAddr], allow_loopback: bool) -> Option<IpAddr> {
    let is_forbidden = |ip: &IpAddr| is_forbidden_address(*ip) || (!allow_loopback && is_loopback_address(*ip));
    addresses.iter().map(SocketAddr::ip).find(is_forbidden)
}

/// What opens first. An address is tried when one before it has failed or has taken [`STAGGER`]; those that are still being
/// tried when another opens are dropped (RFC 8305 5). Of failures the last is told.
async fn first_to_open<T, F>(
    host: &str,
    addresses: Vec<SocketAddr>,
    open: impl Fn(SocketAddr) -> F,
) -> Result<T, String>
where
    F: Future<Output = io::Result<T>>,
{
    let (mut untried, mut opening) = (addresses.into_iter(), FuturesUnordered::new());
    let mut failure = format!("{host} has no address");
    loop {
        if let Some(address) = untried.next() {
            let opened = open(address);
            opening.push(async move { opened.await.map_err(|error| format!("{address}: {error}")) });
        }
        let wait = if untried.as_slice().is_empty() { Duration::MAX } else { STAGGER };
        match timeout(wait, opening.next()).await {
            Ok(Some(Ok(opened))) => return Ok(opened),
            Ok(Some(Err(error))) => failure = error,
            Ok(None) => return Err(failure),
            // The next one is tried beside those.
            Err(_) => {}
        }
    }
}

async fn secure(stream: TcpStream, host: &str, way: &Way) -> Result<Stream, UpstreamError> {
    let connector = TlsConnector::from(way.config.clone());
    let stream = connector
        .connect(way.name.clone(), stream)
        .await
        .map_err(|error| UpstreamError::Connect(format!("TLS with {host}: {error}")))?;
    Ok(Stream::Tls(Box::new(stream)))
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    async fn is_refused(host: &str, allow_loopback: bool) -> bool {
        matches!(connect(host, 1, None, allow_loopback).await, Err(UpstreamError::Forbidden(_)))
    }

    #[tokio::test]
    async fn no_notation_of_an_address_leads_round_the_rules() {
        for host in ["169.254.169.254", "2852039166", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::169.254.169.254"] {
            assert!(is_refused(host, true).await, "{host}");
        }
        for host in ["127.0.0.1", "127.1", "localhost", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1"]
        {
            assert!(is_refused(host, false).await, "{host}");
        }
        assert!(!is_refused("127.0.0.1", true).await);
    }

    #[test]
    fn one_forbidden_address_forbids_the_name() {
        let all: [SocketAddr; 3] =
            ["10.0.0.1:80", "169.254.169.254:80", "[2001:db8::1]:80"].map(|address| address.parse().unwrap());
        assert_eq!(forbidden(&all, true), Some(all[1].ip()));
        assert_eq!(forbidden(&all[2..], true), None);
    }

    /// So many milliseconds until an address opens (`true`), or fails.
    type Way = (u64, bool);

    /// Which of these addresses it is, by its place, and after how many milliseconds.
    async fn raced(ways: &[Way]) -> (Result<u16, String>, u128) {
        let began = Instant::now();
        let places = 0..u16::try_from(ways.len()).unwrap();
        let addresses = places.map(|place| SocketAddr::from(([10, 0, 0, 1], place))).collect();
        let open = |address: SocketAddr| {
            let (millis, opens) = ways[usize::from(address.port())];
            async move {
                sleep(Duration::from_millis(millis)).await;
                if opens { Ok(address.port()) } else { Err(io::Error::from(io::ErrorKind::ConnectionRefused)) }
            }
        };
        let opened = first_to_open("a", addresses, open).await;
        (opened, began.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_silent_costs_a_stagger_and_one_that_fails_nothing() {
        const SILENT: Way = (60_000, false);
        const CASES: &[(&[Way], u16, u128)] = &[
            (&[(10, true)], 0, 10),
            (&[SILENT, (10, true)], 1, 260),
            (&[SILENT, SILENT, (10, true)], 2, 510),
            (&[(10, false), (10, true)], 1, 20),
            (&[SILENT, (10, false), (10, true)], 2, 270),
            // Slower than the stagger, and still the first.
            (&[(300, true), (100, true)], 0, 300),
            (&[(300, true), (10, true)], 1, 260),
        ];
        for &(ways, place, millis) in CASES {
            let (opened, took) = raced(ways).await;
            assert_eq!(opened, Ok(place), "{ways:?}");
            assert!(took.abs_diff(millis) <= 5, "{ways:?} took {took} ms");
        }
        let (opened, took) = raced(&[(300, false), (100, false)]).await;
        assert!(opened.is_err_and(|error| error.starts_with("10.0.0.1:1: ")) && took.abs_diff(350) <= 5, "{took} ms");
        assert_eq!(raced(&[]).await.0, Err("a has no address".to_owned()));
    }
}
