//! Opening a connection: name resolution, egress rules, TCP and TLS.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use doorman_crds::api::is_forbidden_address;
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

/// Connects to the first address that answers. Every address a name resolves to must pass the egress rules, so that a
/// name can't smuggle a forbidden one in beside an allowed one.
pub(super) async fn connect(
    host: &str,
    port: u16,
    tls: bool,
    http2: bool,
    allow_loopback: bool,
) -> Result<Stream, UpstreamError> {
    let addresses: Vec<SocketAddr> =
        lookup_host((host, port)).await.map_err(|error| UpstreamError::Connect(format!("{host}: {error}")))?.collect();
    let forbidden = |address: &SocketAddr| {
        is_forbidden_address(address.ip()) || (!allow_loopback && address.ip().to_canonical().is_loopback())
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
                return if tls { secure(stream, host, http2).await } else { Ok(Stream::Plain(stream)) };
            }
            Err(error) => failure = format!("{address}: {error}"),
        }
    }
    Err(UpstreamError::Connect(failure))
}

async fn secure(stream: TcpStream, host: &str, http2: bool) -> Result<Stream, UpstreamError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|error| UpstreamError::Connect(error.to_string()))?;
    let connector = TlsConnector::from(client_config(http2));
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| UpstreamError::Connect(format!("TLS with {host}: {error}")))?;
    Ok(Stream::Tls(Box::new(stream)))
}

/// The client side of TLS with the system's roots, loaded once.
fn client_config(http2: bool) -> Arc<ClientConfig> {
    static CONFIGS: [OnceLock<Arc<ClientConfig>>; 2] = [OnceLock::new(), OnceLock::new()];
    let config = CONFIGS[usize::from(http2)].get_or_init(|| {
        let mut roots = rustls::RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a system root certificate can't be read");
        }
        roots.add_parsable_certificates(found.certs);
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols =
            if http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
        Arc::new(config)
    });
    config.clone()
}
