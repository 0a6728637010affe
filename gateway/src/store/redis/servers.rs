//! From settings to clients of Redis: addresses, logins and TLS.
//!
//! In: [`Storage`]. Out: clients that have not connected yet. What always holds: with `REDIS_TLS` nothing is said in
//! plain, to Sentinels neither, and every certificate is checked; the password of Redis is not shown to Sentinels.

use std::{fs, path::Path};

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, RedisResult, TlsCertificates, TlsMode,
    cluster::{ClusterClient, ClusterClientBuilder},
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use rustls::crypto::aws_lc_rs;

use super::TIMEOUT;
use crate::settings::{RedisServers, Storage};

/// Whom to ask.
pub(super) enum Servers {
    /// This server.
    Standalone(Box<Client>),
    /// The server that Sentinels call the master.
    Sentinel(Box<SentinelClient>),
    /// A cluster, and each of the nodes it is known by.
    Cluster(Box<ClusterClient>, Vec<Client>),
}

/// What is common to all servers of one installation.
struct Way {
    certificates: Option<TlsCertificates>,
    login: RedisConnectionInfo,
}

impl Way {
    fn address(&self, host: String, port: u16) -> ConnectionAddr {
        if self.certificates.is_some() {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        }
    }

    fn info(&self, host: String, port: u16) -> RedisResult<ConnectionInfo> {
        let info = self.address(host, port).into_connection_info()?;
        Ok(info.set_redis_settings(self.login.clone()))
    }

    fn client(&self, info: ConnectionInfo) -> RedisResult<Client> {
        match &self.certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
            None => Client::open(info),
        }
    }
}

/// The servers of these settings.
pub(super) fn of(storage: &Storage) -> RedisResult<Servers> {
    let certificates = storage.redis_tls.then(|| certificates(storage)).transpose()?;
    let mut login = RedisConnectionInfo::default();
    if let Some(user) = &storage.redis_user {
        login = login.set_username(user);
    }
    if let Some(password) = &storage.redis_password {
        login = login.set_password(password.expose());
    }
    let mut way = Way { certificates, login };
    match storage.redis_servers() {
        RedisServers::Standalone(host, port) => {
            way.login = way.login.set_db(storage.redis_db.into());
            Ok(Servers::Standalone(Box::new(way.client(way.info(host, port)?)?)))
        }
        RedisServers::Cluster(nodes) => {
            let infos = nodes.into_iter().map(|(host, port)| way.info(host, port)).collect::<RedisResult<Vec<_>>>()?;
            let mut builder =
                ClusterClientBuilder::new(infos.clone()).connection_timeout(TIMEOUT).response_timeout(TIMEOUT);
            if let Some(certificates) = &way.certificates {
                builder = builder.certs(certificates.clone());
            }
            let clients = infos.into_iter().map(|info| way.client(info)).collect::<RedisResult<_>>()?;
            Ok(Servers::Cluster(Box::new(builder.build()?), clients))
        }
        RedisServers::Sentinel(sentinels, master) => {
            let addresses = sentinels.into_iter().map(|(host, port)| way.address(host, port));
            let builder = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?;
            Ok(Servers::Sentinel(Box::new(behind_sentinels(builder, way.certificates, storage).build()?)))
        }
    }
}

fn behind_sentinels(
    mut builder: SentinelClientBuilder,
    certificates: Option<TlsCertificates>,
    storage: &Storage,
) -> SentinelClientBuilder {
    builder = builder.set_client_to_redis_db(storage.redis_db.into());
    if let Some(user) = &storage.redis_user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = &storage.redis_password {
        builder = builder.set_client_to_redis_password(password.expose());
    }
    if let Some(user) = &storage.redis_sentinel_user {
        builder = builder.set_client_to_sentinel_username(user);
    }
    if let Some(password) = &storage.redis_sentinel_password {
        builder = builder.set_client_to_sentinel_password(password.expose());
    }
    if let Some(certificates) = certificates {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_certificates(certificates);
    }
    builder
}

fn certificates(storage: &Storage) -> RedisResult<TlsCertificates> {
    // The library takes the process's provider; an error says that one is set, and there is only this one.
    let _ = aws_lc_rs::default_provider().install_default();
    let read = |file: &Path| -> RedisResult<Vec<u8>> { Ok(fs::read(file)?) };
    let client_tls = match (&storage.redis_tls_cert_file, &storage.redis_tls_key_file) {
        (Some(certificate), Some(key)) => {
            Some(ClientTlsConfig { client_cert: read(certificate)?, client_key: read(key)? })
        }
        _ => None,
    };
    let root_cert = storage.redis_tls_ca_file.as_deref().map(read).transpose()?;
    Ok(TlsCertificates { client_tls, root_cert })
}

/// What there may be to look at when no connection came about with these settings.
pub(super) fn advice(cause: &RedisError, storage: &Storage) -> Option<&'static str> {
    // Of a cluster's nodes, only the text tells why.
    let text = cause.to_string();
    let is_login = cause.kind() == ErrorKind::AuthenticationFailed
        || ["NOAUTH", "WRONGPASS", "authentication failed"].iter().any(|part| text.contains(part));
    if is_login && storage.redis_sentinels.is_empty() {
        return Some("see REDIS_USERNAME and REDIS_PASSWORD");
    }
    if is_login {
        return Some(
            "see REDIS_USERNAME and REDIS_PASSWORD, and REDIS_SENTINEL_USERNAME and REDIS_SENTINEL_PASSWORD for the Sentinels",
        );
    }
    if cause.kind() == ErrorKind::MasterNameNotFoundBySentinel {
        return Some("see REDIS_SENTINEL_MASTER, and whether the Sentinels take that master to be well");
    }
    if cause.is_connection_refusal() {
        return None;
    }
    if storage.redis_tls {
        return Some(
            "REDIS_TLS is on: the server must speak TLS and show a certificate for this address, signed by an authority of REDIS_TLS_CA_FILE; it may want one too, REDIS_TLS_CERT_FILE",
        );
    }
    (cause.is_connection_dropped() || cause.is_timeout() || cause.kind() == ErrorKind::Parse)
        .then_some("if the server wants TLS, set REDIS_TLS")
}
