//! Opening a connection: name resolution, egress rules, TCP and TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use doorman_crds::api::{is_forbidden_address, is_loopback_address};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::UpstreamError;

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
    let forbidden = |address: &SocketAddr| {
        is_forbidden_address(address.ip()) || (!allow_loopback && is_loopback_address(address.ip()))
    };
    if let Some(address) = addresses.iter().find(|address| forbidden(address)) {
        return Err(UpstreamError::Forbidden(address.ip()));
    }
    let mut failure = format!("{host} has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Requests are written whole; waiting to fill a segment only adds latency.
                let _ = stream.set_nodelay(true);
                return match tls {
                    Some(way) => secure(stream, host, way).await,
                    None => Ok(Stream::Plain(stream)),
                };
            }
            Err(error) => failure = format!("{address}: {error}"),
        }
    }
    Err(UpstreamError::Connect(failure))
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
}
